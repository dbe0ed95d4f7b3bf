"""Couriers and deliveries of the test's own: just the database, and what the floors above would do to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from db.engine import Database, create_engine
from tests.db.fleets import Fleet


@pytest_asyncio.fixture
async def fleet(database_url: str) -> AsyncIterator[Fleet]:
    """A migrated database, without anybody in it."""
    database = Database(create_engine(database_url, name="test"))
    yield Fleet(database)
    await database.close()
