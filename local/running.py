"""Where the running stack is, as its `stack.env` says."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from domain.ids import Names
from local.errors import StackError
from local.stack import DataDir, read_stack_env
from local.temporal import NAMESPACE, without_temporal
from settings import Settings

_ROLES = ("client", "courier", "admin")


@dataclass(frozen=True)
class RunningStack:
    """How the stack is reached, and by whom."""

    url: str
    tokens: dict[str, str] = field(repr=False)
    database_url: str = field(repr=False)
    temporal_environment: dict[str, str] = field(repr=False)
    """What a client of its Temporal finds in its environment."""
    temporal_embedded: bool
    names: Names


def running_stack() -> RunningStack:
    """The stack on this environment's data dir. Raises StackError when none runs."""
    settings = Settings.from_env(os.environ)
    data_dir = DataDir(settings.data_dir)
    try:
        values = read_stack_env(data_dir.stack_env)
        url, database_url = values["WAYBILL_API_URL"], values["WAYBILL_DATABASE_URL"]
        temporal = {"TEMPORAL_ADDRESS": values["TEMPORAL_ADDRESS"]}
        tokens = {role: values[f"WAYBILL_{role.upper()}_TOKEN"] for role in _ROLES}
    except (FileNotFoundError, KeyError):
        raise StackError(f"No stack runs on {data_dir.path}: start one with `make up`.") from None
    _require_answer(url)
    embedded = settings.temporal_address is None
    if embedded:
        environment = {**without_temporal(os.environ), **temporal, "TEMPORAL_NAMESPACE": NAMESPACE}
    else:
        environment = {**os.environ, **temporal}
    return RunningStack(url, tokens, database_url, environment, embedded, Names(settings.installation))


def _require_answer(url: str) -> None:
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname or "", address.port or 80), timeout=5).close()
    except OSError:
        raise StackError(
            f"Nothing answers at {url}, where the stack's API was: start it again with `make up`."
        ) from None
