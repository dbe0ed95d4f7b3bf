"""`python -m local.psql [arguments]`: the bundled psql on the running stack's database."""

from __future__ import annotations

import os
import socket
import sys
from urllib.parse import unquote, urlsplit

from local.errors import StackError
from local.postgres import binary
from local.stack import DataDir, read_stack_env
from settings import Settings, SettingsError


def main(arguments: list[str]) -> None:
    """Become psql, with `arguments` after the database's URL. Raises `StackError` when no stack runs."""
    data_dir = DataDir(Settings.from_env(os.environ).data_dir)
    try:
        url = read_stack_env(data_dir.stack_env)["WAYBILL_DATABASE_URL"]
    except (FileNotFoundError, KeyError):
        raise StackError(f"No stack runs on {data_dir.path}: start one with `make up`.") from None
    _require_listening(url)
    program = str(binary("psql"))
    # The password goes through the environment: a command line is everybody's to read.
    address = urlsplit(url)
    environment = dict(os.environ)
    if address.password:
        environment["PGPASSWORD"] = unquote(address.password)
        url = url.replace(f":{address.password}@", "@", 1)
    os.execve(program, [program, url, *arguments], environment)


def _require_listening(url: str) -> None:
    address = urlsplit(url)
    if not address.hostname:
        return
    try:
        socket.create_connection((address.hostname, address.port or 5432), timeout=5).close()
    except OSError:
        raise StackError(
            f"Nothing answers at {address.hostname}:{address.port or 5432}, where the stack's database was: "
            "start it again with `make up`."
        ) from None


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (StackError, SettingsError) as error:
        sys.exit(f"make psql: {error}")
