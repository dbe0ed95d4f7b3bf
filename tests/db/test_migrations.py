"""The schema's history: it builds exactly what the code declares, once, and for one installation."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from db.engine import Database, WrongInstallation, create_engine
from db.migrations import is_migrated, migration_config
from db.schema import metadata
from domain.outbox import SHARDS
from local.postgres import EmbeddedPostgres
from tests.conftest import migrate_for
from tests.servers import fresh_database

LAST_VERSIONS = "0008"
"""The newest migration of the version before."""
ROOT = Path(__file__).parents[2]

CATALOG = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
            pg_get_expr(d.adbin, d.adrelid), co.collname
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_collation co ON co.oid = a.attcollation
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype::text, pg_get_constraintdef(oid), condeferrable, condeferred,
            convalidated
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 't'""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "sequences": "SELECT sequencename, data_type::text, start_value, increment_by, cycle FROM pg_sequences",
    "views": "SELECT viewname FROM pg_views WHERE schemaname = 'public'",
}


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncConnection]:
    """A connection of its own."""
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1), poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


async def catalog(connection: AsyncConnection, what: str) -> set[tuple[Any, ...]]:
    """What PostgreSQL says it has, Alembic's own table left out."""
    rows = await connection.execute(text(CATALOG[what]))
    return {tuple(row) for row in rows if not str(row[0]).startswith("alembic_version")}


@pytest_asyncio.fixture
async def empty_url(postgres: EmbeddedPostgres, installation: str) -> AsyncIterator[str]:
    """The URL of a database without anything in it."""
    async with fresh_database(postgres, f"{installation}-empty") as url:
        yield url


async def test_the_migrations_build_exactly_the_declared_schema(database_url: str, empty_url: str) -> None:
    async with connected(empty_url) as declared, connected(database_url) as migrated:
        await declared.run_sync(metadata.create_all)
        for what in CATALOG:
            wanted, found = await catalog(declared, what), await catalog(migrated, what)
            assert found - wanted == set(), f"{what} that only the migrations build"
            assert wanted - found == set(), f"{what} that the migrations do not build"


async def test_alembic_finds_nothing_left_to_migrate(database_url: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    async with connected(database_url) as connection:
        assert await connection.run_sync(differences) == []


async def everything(url: str) -> list[Any]:
    """The catalog and the rows that migrations write."""
    seeded = ("installation", "outbox_shards", "outbox_endpoints", "status_counts", "alembic_version")
    async with connected(url) as connection:
        rows = [list(await connection.execute(text(f"SELECT * FROM {table} ORDER BY 1, 1"))) for table in seeded]
        return [*rows, *[await catalog(connection, what) for what in CATALOG]]


async def test_migrating_again_changes_nothing(empty_url: str) -> None:
    await migrate_for(empty_url, "shop")
    before = await everything(empty_url)
    await migrate_for(empty_url, "shop")
    assert await everything(empty_url) == before


async def run_migrations(url: str, installation: str) -> tuple[int | None, str]:
    """What an operator's command line does: the exit code, and what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "db.migrations",
        cwd=ROOT,
        env={**os.environ, "WAYBILL_DATABASE_OWNER_URL": url, "WAYBILL_INSTALLATION": installation},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_two_migrations_at_once_both_succeed(empty_url: str) -> None:
    ends = await asyncio.gather(*(run_migrations(empty_url, "shop") for _ in range(2)))
    assert [code for code, _ in ends] == [0, 0], ends
    async with connected(empty_url) as connection:
        assert await is_migrated(connection)
        assert (await connection.scalars(text("SELECT id FROM installation"))).all() == ["shop"]


async def test_migrations_since_the_last_version_only_add_so_that_it_runs_on_the_newer_schema(empty_url: str) -> None:
    async with connected(empty_url) as connection:
        await connection.run_sync(lambda sync: command.upgrade(migration_config(sync), LAST_VERSIONS))
        before = {what: await catalog(connection, what) for what in CATALOG}
        tables = {row[0] for row in before["columns"]}
        await connection.run_sync(lambda sync: command.upgrade(migration_config(sync), "head"))
        after = {what: await catalog(connection, what) for what in CATALOG}
    added = {what: {row for row in after[what] - before[what] if row[0] in tables} for what in CATALOG}
    assert [before[what] - after[what] for what in CATALOG] == [set() for _ in CATALOG]
    for table, column, _, needed, identity, generated, default, _ in added["columns"]:
        assert default or identity or generated or not needed, f"{table}.{column}: the last version does not fill it"
    # A new check or key would judge what the last version writes; what must not be null is judged above.
    assert {row for row in added["constraints"] if row[2] != "n"} == set()


async def test_another_installations_database_is_refused_and_left_alone(empty_url: str) -> None:
    await migrate_for(empty_url, "shop")
    before = await everything(empty_url)
    with pytest.raises(WrongInstallation, match=r"'shop'.*'store'"):
        await migrate_for(empty_url, "store")
    code, said = await run_migrations(empty_url, "store")
    assert (code, said.count("\n")) == (1, 1)
    assert "'shop'" in said
    assert await everything(empty_url) == before


async def test_every_shard_and_the_standing_endpoints_are_there_from_the_start_with_email_off(
    database_url: str,
) -> None:
    async with connected(database_url) as connection:
        shards = await connection.execute(text("SELECT shard, epoch, owner, dispatched FROM outbox_shards ORDER BY 1"))
        assert [tuple(row) for row in shards] == [(shard, 0, None, 0) for shard in range(SHARDS)]
        endpoints = await connection.execute(
            text("SELECT name, kind, url, enabled, open_until FROM outbox_endpoints ORDER BY 1")
        )
        assert [tuple(row) for row in endpoints] == [
            ("email", "email", None, False, None),
            ("workflow", "workflow", None, True, None),
        ]


async def test_a_database_says_whether_it_is_migrated(database_url: str, empty_url: str) -> None:
    async with connected(database_url) as connection:
        assert await is_migrated(connection)
    async with connected(empty_url) as connection:
        assert not await is_migrated(connection)


async def test_a_database_of_another_version_is_not_migrated(database_url: str) -> None:
    async with connected(database_url) as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        assert not await is_migrated(connection)


async def test_an_installation_starts_only_on_its_own_database(database_url: str, empty_url: str) -> None:
    own, empty = Database(create_engine(database_url)), Database(create_engine(empty_url))
    try:
        await own.check_installation("template")
        with pytest.raises(WrongInstallation, match=r"'template'.*'store'"):
            await own.check_installation("store")
        with pytest.raises(WrongInstallation, match="has not been migrated"):
            await empty.check_installation("store")
    finally:
        await own.close()
        await empty.close()


@pytest.mark.parametrize(
    "broken",
    [
        "INSERT INTO products (sku, name, stock, ledger_stock) VALUES ('tea', 'Tea', -1, -1)",
        "INSERT INTO products (sku, name, stock, reserved, ledger_stock) VALUES ('tea', 'Tea', 1, 2, 1)",
        "INSERT INTO products (sku, name, stock, reserved, ledger_stock) VALUES ('tea', 'Tea', 1, -1, 1)",
        "INSERT INTO installation (singleton, id) VALUES (false, 'store')",
        "INSERT INTO installation (id) VALUES ('store')",
    ],
)
async def test_the_database_itself_refuses_what_must_never_be(database_url: str, broken: str) -> None:
    with pytest.raises(IntegrityError):
        async with connected(database_url) as connection:
            await connection.execute(text(broken))
