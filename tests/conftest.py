"""What tests stand on: servers shared by the run, and for each test a house of its own on them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from temporalio.client import Client

from db.migrations import migrate
from local.postgres import EmbeddedPostgres
from local.temporal import EmbeddedTemporal
from tests.houses import House, open_house
from tests.receivers import Receiver
from tests.servers import fresh_database, throw_away_postgres, throw_away_temporal

TEMPLATE = "template_waybill"


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A running PostgreSQL."""
    with throw_away_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def temporal() -> Iterator[EmbeddedTemporal]:
    """A running Temporal dev server."""
    with throw_away_temporal() as server:
        yield server


@pytest_asyncio.fixture(scope="session")
async def client(temporal: EmbeddedTemporal) -> Client:
    """A client of the Temporal server."""
    return await Client.connect(temporal.address)


@pytest.fixture
def installation() -> str:
    """An installation's id of the test's own: what it does in Temporal meets nobody else's."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest_asyncio.fixture(scope="session")
async def template(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """The name of a migrated database to copy from."""
    async with fresh_database(postgres, TEMPLATE) as url:
        await migrate_for(url, "template")
        yield TEMPLATE


async def migrate_for(url: str, installation: str) -> None:
    """Migrate in a thread: `migrate` runs an event loop of its own."""
    import asyncio

    await asyncio.to_thread(migrate, url, installation)


@pytest_asyncio.fixture
async def database_url(postgres: EmbeddedPostgres, template: str, installation: str) -> AsyncIterator[str]:
    """The URL of a migrated database of the test's own."""
    async with fresh_database(postgres, installation, template) as url:
        yield url


@pytest_asyncio.fixture
async def house(database_url: str, client: Client, installation: str) -> AsyncIterator[House]:
    """API, worker, PostgreSQL and Temporal, the test's own as far as it can see."""
    async with open_house(database_url, client, installation) as opened:
        yield opened


@pytest_asyncio.fixture
async def quiet_house(database_url: str, client: Client, installation: str) -> AsyncIterator[House]:
    """A house where nobody is home: for what needs no worker."""
    async with open_house(database_url, client, installation, worker=False) as opened:
        yield opened


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A webhook receiver over real HTTP."""
    async with Receiver() as running:
        yield running
