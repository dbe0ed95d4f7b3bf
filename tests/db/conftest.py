"""A shop of the test's own: just the database, and what the floors above would do to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from db.engine import Database, create_engine
from tests.db.shops import Shop


@pytest_asyncio.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    """A migrated database, empty."""
    database = Database(create_engine(database_url, name="test"))
    yield Shop(database)
    await database.close()
