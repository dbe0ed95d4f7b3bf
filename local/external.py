"""Servers that were there before us: checked at the start, never started or stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import urlsplit

import asyncpg

from local.errors import StackError
from local.temporal import temporal_complaint

_OLDEST_POSTGRES = 15
_CONNECT_SECONDS = 5


def require_postgres(url: str) -> None:
    """Raises `StackError` unless a PostgreSQL of a supported version answers at `WAYBILL_DATABASE_URL`."""
    try:
        major = asyncio.run(_server_major(url))
    except (OSError, ValueError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StackError(
            f"The PostgreSQL of WAYBILL_DATABASE_URL ({place_of(url)}) cannot be used: {error or 'it does not answer'}."
        ) from None
    if major < _OLDEST_POSTGRES:
        raise StackError(
            f"The PostgreSQL of WAYBILL_DATABASE_URL ({place_of(url)}) is version {major}: "
            f"{_OLDEST_POSTGRES} or newer is needed."
        )


def require_temporal(address: str, environment: Mapping[str, str]) -> None:
    """Raises `StackError` unless a Temporal with our namespace answers as the `TEMPORAL_*` variables say."""
    complaint = temporal_complaint([], environment)
    if complaint is not None:
        raise StackError(f"The Temporal of TEMPORAL_ADDRESS ({address}) cannot be used: {complaint}.")


async def _server_major(url: str) -> int:
    connection = await asyncpg.connect(url, timeout=_CONNECT_SECONDS)
    try:
        return connection.get_server_version().major
    finally:
        await connection.close(timeout=_CONNECT_SECONDS)


def place_of(url: str) -> str:
    """`host:port/database` of a PostgreSQL URL: what may be shown, without user and password."""
    try:
        address = urlsplit(url)
        return f"{address.hostname or 'local socket'}:{address.port or 5432}{address.path}"
    except ValueError:  # a password with characters that it must spell in percent
        return "a URL that cannot be read"
