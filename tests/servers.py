"""Throw-away servers for tests: real ones, on free ports, gone without a trace at the end."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg

from local.ports import free_port
from local.postgres import EmbeddedPostgres
from local.temporal import EmbeddedTemporal

# The data is thrown away, so nothing has to survive a power cut; transactions behave as ever.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}
# From when on a change could be seen: its commit's time, not one that was read in the course of it.
_MEASURED = {"track_commit_timestamp": "on"}


@contextmanager
def throw_away_directory() -> Iterator[Path]:
    """An empty folder with a short path that PostgreSQL's own user can reach; removed at the end.

    In memory where the system has such a place: copying the template database takes 7 ms there, 300 ms on a disk.
    """
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="waybill-", dir=memory if memory.is_dir() else None) as name:
        directory = Path(name)
        directory.chmod(0o711)
        yield directory


@contextmanager
def throw_away_postgres() -> Iterator[EmbeddedPostgres]:
    """A running PostgreSQL; takes about a second. Meant for a whole session: see `fresh_database`."""
    with (
        throw_away_directory() as directory,
        EmbeddedPostgres(directory / "postgres", free_port(), settings={**NOT_DURABLE, **_MEASURED}) as postgres,
    ):
        yield postgres


@contextmanager
def throw_away_temporal() -> Iterator[EmbeddedTemporal]:
    """A running Temporal dev server that keeps everything in memory, without its web UI."""
    with (
        throw_away_directory() as directory,
        EmbeddedTemporal(free_port(), log=directory / "temporal.log") as temporal,
    ):
        yield temporal


@asynccontextmanager
async def fresh_database(postgres: EmbeddedPostgres, name: str, template: str = "template1") -> AsyncIterator[str]:
    """The URL of a new database, a copy of `template` (which nobody may be connected to); dropped at the end."""
    await _execute(postgres, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
    try:
        yield postgres.url(name)
    finally:
        await _execute(postgres, f'DROP DATABASE "{name}" WITH (FORCE)')


async def _execute(postgres: EmbeddedPostgres, statement: str) -> None:
    connection = await asyncpg.connect(postgres.url())
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
