"""A throw-away PostgreSQL as durable as a real one, and databases full of events that wait to be carried."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import asyncpg
import psutil

from db.engine import Database, create_engine
from db.migrations import migrate
from db.outbox.endpoints import WebhookWish, put_webhook
from db.outbox.write import write_events
from domain.outbox import Event, EventType, new_webhook_secret, order_event
from local.ports import free_port
from local.postgres import SUPERUSER, EmbeddedPostgres

LANES = 400
ENDPOINT = "shop"
_WRITTEN_AT_ONCE = 500


@contextmanager
def throw_away_postgres() -> Iterator[EmbeddedPostgres]:
    """A running PostgreSQL with the settings of `make up`: a commit is on the disk before it is answered."""
    with tempfile.TemporaryDirectory(prefix="waybill-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        with EmbeddedPostgres(directory / "postgres", free_port()) as postgres:
            yield postgres


class Server:
    """Makes the databases that the measurements run on, each one a fresh copy of a template."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._postgres = postgres
        self._copies = 0

    async def template(self, name: str, fill: Callable[[Database], Awaitable[None]]) -> str:
        """Make a migrated database and fill it; answer its name, for `copy`."""
        await self._execute(f'CREATE DATABASE "{name}"')
        url = self._postgres.url(name)
        await asyncio.to_thread(migrate, url, "bench")
        async with opened(url) as database:
            await fill(database)
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("VACUUM ANALYZE")
        finally:
            await connection.close()
        return name

    @asynccontextmanager
    async def copy(self, template: str = "template1") -> AsyncIterator[str]:
        """The URL of a new database, a copy of the template; dropped at the end."""
        self._copies += 1
        name = f"bench-{self._copies}"
        await self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        # No checkpoint of what was written before falls into the measurement.
        await self._execute("CHECKPOINT")
        try:
            yield self._postgres.url(name)
        finally:
            await self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def cpu_seconds(self) -> float:
        """What the server's processes have used so far, those included that have ended."""
        main = psutil.Process(self._postgres.process.pid)
        used = sum(main.cpu_times()[:4])
        for child in main.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                used += sum(child.cpu_times()[:2])
        return used

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self._postgres.url("postgres", role=SUPERUSER))
        try:
            role = '"waybill"' if statement.startswith("CREATE") else ""
            await connection.execute(f"{statement} OWNER {role}" if role else statement)
        finally:
            await connection.close()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """A pool as a worker's relays have it; closed at the end."""
    database = Database(create_engine(url, name="bench", ping=False))
    try:
        yield database
    finally:
        await database.close()


async def make_webhook(
    database: Database, url: str, event_types: Sequence[EventType] | None = None, *, name: str = ENDPOINT
) -> None:
    """Make a webhook as an admin would."""
    wish = WebhookWish(url, list(event_types) if event_types is not None else None)
    secret = new_webhook_secret()
    await database.transact(partial(put_webhook, name=name, wish=wish, secret=secret, actor="bench", reason=None))


def event(number: int, event_type: EventType = EventType.ORDER_CONFIRMED) -> Event:
    """The event of that number: an order of two lines, in one of so many lanes."""
    order_id = f"order-{number % LANES:05}"
    data = {
        "status": "CONFIRMED",
        "customerId": f"customer-{number % 977:04}",
        "zone": "north",
        "lines": [{"sku": f"sku-{number % 313:04}", "quantity": 2}, {"sku": "tea", "quantity": 1}],
    }
    return order_event(event_type, order_id, order_id, data)


async def write(database: Database, count: int, event_type: EventType = EventType.ORDER_CONFIRMED) -> None:
    """Write so many events, each lane's evenly among the others'."""
    for first in range(0, count, _WRITTEN_AT_ONCE):
        numbers = range(first, min(first + _WRITTEN_AT_ONCE, count))
        events = [event(number, event_type) for number in numbers]
        await database.transact(partial(write_events, events=events))
