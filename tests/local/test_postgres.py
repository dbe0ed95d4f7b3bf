"""The embedded PostgreSQL, for real: what it is set to, that it survives kills, and what it refuses."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from local.errors import Interrupted, StackError
from local.ports import free_port
from local.postgres import EmbeddedPostgres, end_postgres_leftovers, postgres_leftovers
from tests.servers import NOT_DURABLE, fresh_database, throw_away_directory, throw_away_postgres
from tests.waiting import wait_until


@pytest.fixture(name="directory")
def _directory() -> Iterator[Path]:
    with throw_away_directory() as directory:
        yield directory / "postgres"


async def _fetch(url: str, query: str, **options: Any) -> list[dict[str, Any]]:
    connection = await asyncpg.connect(url, **options)
    try:
        return [dict(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_it_is_what_the_design_says() -> None:
    with throw_away_postgres() as postgres:
        [row] = await _fetch(
            postgres.url(),
            """SELECT current_database() AS database, rolname AS role, rolsuper AS super, rolcreatedb AS createdb,
                 pg_encoding_to_char(encoding) AS encoding, datlocale AS locale,
                 current_setting('server_version_num')::int / 10000 AS major,
                 current_setting('data_checksums') AS checksums, current_setting('synchronous_commit') AS commit,
                 current_setting('listen_addresses') AS addresses, current_setting('max_connections') AS connections,
                 current_setting('password_encryption') AS encryption, current_setting('TimeZone') AS zone
               FROM pg_roles, pg_database WHERE rolname = current_user AND datname = current_database()""",
        )
        assert row == {
            "database": "waybill",
            "role": "waybill",
            "super": False,
            "createdb": True,
            "encoding": "UTF8",
            "locale": "C.UTF-8",
            "major": 18,
            "checksums": "on",
            "commit": "on",
            "addresses": "127.0.0.1",
            "connections": "200",
            "encryption": "scram-sha-256",
            "zone": "UTC",
        }


async def test_it_asks_for_the_password_on_the_port_and_on_the_socket() -> None:
    with throw_away_postgres() as postgres:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await _fetch(postgres.url(), "SELECT 1", password="wrong")
        socket = {"host": str(postgres.socket_directory), "port": postgres.port}
        with pytest.raises(asyncpg.InvalidPasswordError):
            await _fetch(postgres.url(), "SELECT 1", **socket, password="wrong")
        assert await _fetch(postgres.url(), "SELECT 1", **socket)
        assert (postgres.directory / "password").stat().st_mode & 0o077 == 0


async def test_a_test_gets_a_database_of_its_own() -> None:
    with throw_away_postgres() as postgres:
        async with fresh_database(postgres, "one") as url:
            await _fetch(url, "CREATE TABLE orders (id int)")
        async with fresh_database(postgres, "one") as url:
            assert await _fetch(url, "SELECT to_regclass('orders') AS it") == [{"it": None}]


async def test_what_was_committed_survives_a_kill_of_its_main_process_under_load(directory: Path) -> None:
    postgres = EmbeddedPostgres(directory, free_port())
    with postgres:
        await _fetch(postgres.url(), "CREATE TABLE orders AS SELECT 1 AS id")
        busy = await asyncpg.connect(postgres.url())
        await busy.execute("BEGIN; SELECT * FROM orders FOR UPDATE")
        postgres.process.signal(signal.SIGKILL)
        wait_until(lambda: not postgres.running)
        # Started at once: the killed server's other processes may still be attached to the data.
        postgres.start()
        assert await _fetch(postgres.url(), "SELECT id FROM orders") == [{"id": 1}]
        busy.terminate()
    assert not postgres.running
    assert postgres_leftovers(directory) == []


async def test_an_orphan_is_found_by_its_data_and_ended(directory: Path) -> None:
    orphan = EmbeddedPostgres(directory, free_port(), settings=NOT_DURABLE)
    orphan.start()
    assert end_postgres_leftovers(directory) == 1
    wait_until(lambda: not orphan.running)
    assert end_postgres_leftovers(directory) == 0
    with EmbeddedPostgres(directory, free_port(), settings=NOT_DURABLE) as postgres:
        assert await _fetch(postgres.url(), "SELECT 1")


async def test_a_lock_file_with_a_reused_process_id_stops_nobody(directory: Path) -> None:
    postgres = EmbeddedPostgres(directory, free_port(), settings=NOT_DURABLE)
    with postgres:
        postgres.process.kill()
        lock = directory / "data" / "postmaster.pid"
        lines = lock.read_text().splitlines()
        # Somebody else's process, and one that is certainly alive: our own.
        lock.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
        postgres.start()
        assert await _fetch(postgres.url(), "SELECT 1")


def test_a_first_start_that_is_broken_off_leaves_nothing_half_made(directory: Path) -> None:
    def give_up() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        EmbeddedPostgres(directory, free_port(), settings=NOT_DURABLE).start(give_up)
    assert postgres_leftovers(directory) == []
    assert not (directory / "data").exists()
    # As a kill in the middle of initdb leaves it.
    (directory / "data.new").mkdir(exist_ok=True)
    (directory / "data.new" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(directory, free_port(), settings=NOT_DURABLE) as postgres:
        assert postgres.running


def test_data_of_another_version_is_refused_in_one_sentence(directory: Path) -> None:
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "PG_VERSION").write_text("15\n")
    with pytest.raises(StackError, match=r"holds data of PostgreSQL 15, and the bundled one is 18: .*WAYBILL_DATA_DIR"):
        EmbeddedPostgres(directory, free_port()).start()


def test_a_server_that_cannot_start_says_why(directory: Path) -> None:
    with pytest.raises(StackError, match=r"PostgreSQL did not start: .*shared_buffers"):
        EmbeddedPostgres(directory, free_port(), settings={**NOT_DURABLE, "shared_buffers": "nonsense"}).start()


def test_a_path_too_long_for_a_socket_leaves_the_port(directory: Path) -> None:
    with EmbeddedPostgres(directory / ("long" * 25), free_port(), settings=NOT_DURABLE) as postgres:
        assert postgres.socket_directory is None
        assert postgres.running
