"""The schema's history, and bringing a database up to date: `python -m db.migrations`."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from db.engine import WrongInstallation

# Any number will do, as long as every migration asks for the same one.
_MIGRATION_LOCK = 7_226_113


def migration_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; `env.py` runs on the connection given here."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def migrate(owner_url: str, installation: str, app_role: str | None = None) -> None:
    """Bring the database to the newest schema and claim it for the installation, in one transaction.

    `app_role`: another role than the owner, which the application connects as; it may read and write, not alter.
    Two at once wait for each other. Raises WrongInstallation where the database is another installation's.
    """
    asyncio.run(_migrate(owner_url, installation, app_role))


async def _migrate(owner_url: str, installation: str, app_role: str | None) -> None:
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(owner_url), poolclass=NullPool
    )
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            await connection.run_sync(lambda sync: command.upgrade(migration_config(sync), "head"))
            await _claim(connection, installation)
            if app_role is not None:
                await _grant(connection, app_role)
    finally:
        await engine.dispose()


async def _claim(connection: AsyncConnection, installation: str) -> None:
    await connection.execute(
        text("INSERT INTO installation (id) VALUES (:id) ON CONFLICT DO NOTHING"), {"id": installation}
    )
    found = await connection.scalar(text("SELECT id FROM installation"))
    if found != installation:
        raise WrongInstallation(
            f"The database belongs to the installation {found!r}, but WAYBILL_INSTALLATION is {installation!r}."
        )


async def _grant(connection: AsyncConnection, app_role: str) -> None:
    role = '"' + app_role.replace('"', '""') + '"'
    for grant in (
        "USAGE ON SCHEMA public",
        "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public",
        "USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public",
    ):
        await connection.execute(text(f"GRANT {grant} TO {role}"))


@cache
def newest_revision() -> str | None:
    """The schema that this code knows."""
    return ScriptDirectory.from_config(migration_config()).get_current_head()


async def is_migrated(connection: AsyncConnection) -> bool:
    """Whether the schema is the newest that this code knows."""
    current = await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
    return current == newest_revision()
