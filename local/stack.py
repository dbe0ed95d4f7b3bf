"""The data dir: its lock, its tokens, and the `stack.env` that tells others how to reach the running stack."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from local.errors import StackError
from settings import Settings


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The three static bearer tokens."""

    client: str = field(repr=False)
    courier: str = field(repr=False)
    admin: str = field(repr=False)


class DataDir:
    """Where the embedded stack keeps everything; nothing else on the machine is written to."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.logs = self.path / "logs"
        self.postgres = self.path / "postgres"
        self.temporal_database = self.path / "temporal.db"
        self.stack_env = self.path / "stack.env"
        self._tokens = self.path / "tokens.json"

    def create(self) -> None:
        """Make the folder if it is missing. Raises `OSError`."""
        if not self.path.exists():
            self.path.mkdir(parents=True)
            # PostgreSQL's own user passes through; what is secret inside has a mode of its own.
            self.path.chmod(0o711)
        self.logs.mkdir(mode=0o700, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; the end of the process, however it ends, lets it go too.

        Raises `StackError` if another run holds it.
        """
        with (self.path / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise StackError(
                    f"Another `make up` (process {lock.read().strip()}) runs on {self.path}: stop it, or give this one "
                    "a data dir and ports of its own (WAYBILL_DATA_DIR)."
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def tokens(self, settings: Settings) -> Tokens:
        """The tokens that the settings give; for those they do not, the ones generated at the first call and kept."""
        kept: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            kept = json.loads(self._tokens.read_text())
        generated = {name: kept.get(name) or secrets.token_urlsafe(24) for name in ("client", "courier", "admin")}
        if generated != kept:
            write_secret(self._tokens, json.dumps(generated) + "\n")
        return Tokens(
            client=settings.client_token or generated["client"],
            courier=settings.courier_token or generated["courier"],
            admin=settings.admin_token or generated["admin"],
        )

    def write_stack_env(self, values: Mapping[str, str]) -> None:
        """Tell others that the stack is up, and how to reach it: `NAME=value` lines that a shell can source."""
        write_secret(self.stack_env, "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()))

    def remove_stack_env(self) -> None:
        """Tell others that the stack is not up."""
        self.stack_env.unlink(missing_ok=True)


def stack_env_values(database_url: str, temporal_address: str, api_url: str, tokens: Tokens) -> dict[str, str]:
    """What `stack.env` says."""
    return {
        "WAYBILL_DATABASE_URL": database_url,
        "TEMPORAL_ADDRESS": temporal_address,
        "WAYBILL_API_URL": api_url,
        **{f"WAYBILL_{role.upper()}_TOKEN": token for role, token in asdict(tokens).items()},
    }


def read_stack_env(path: Path) -> dict[str, str]:
    """The values of a `stack.env`. Raises `FileNotFoundError` where no stack is up."""
    lines = (line for line in path.read_text().splitlines() if "=" in line)
    return {name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)}


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner may read, at once in full or not at all."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600)
    unfinished.write_text(text)
    unfinished.replace(path)
