"""The relays of all shards at work in this process: the activity that a worker runs, without Temporal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import asyncpg
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.outbox import OutboxActivities
from bench.outbox_server import opened
from db.engine import Database
from domain.ids import Names
from domain.outbox import SHARDS, Endpoint, Message, SinkKind
from sinks import Sink

_POLL_SECONDS = 0.005
_TOO_LONG_SECONDS = 600.0


class NoOpSink:
    """Does nothing but count what it is given, and see whether each lane's messages come in order."""

    def __init__(self) -> None:
        self.count = 0
        self.out_of_order = 0
        self._last: dict[str, int] = {}

    async def send(self, endpoint: Endpoint, message: Message) -> None:
        """Take one message."""
        if message.position <= self._last.get(message.lane, 0):
            self.out_of_order += 1
        self._last[message.lane] = message.position
        self.count += 1


@dataclass(frozen=True)
class Drained:
    """What it took to carry everything that waited."""

    count: int
    seconds: float

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.count / self.seconds


class Relays:
    """The running relays."""

    def __init__(self, tasks: list[asyncio.Task[None]]) -> None:
        self._tasks = tasks
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since they began."""
        return time.perf_counter() - self._began

    async def until(self, awaitable: Awaitable[None]) -> None:
        """Wait for something that the relays bring about; raise what a relay raises meanwhile."""
        waiting = asyncio.ensure_future(awaitable)
        try:
            async with asyncio.timeout(_TOO_LONG_SECONDS):
                await asyncio.wait([waiting, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done():
                    task.result()
                    raise AssertionError("a relay ended by itself")
            await waiting
        finally:
            waiting.cancel()

    async def ended(self) -> None:
        """Wait until they have drained. Raises what a relay raised, other than to say that it gives its shard back."""
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, ApplicationError):
                raise outcome


@asynccontextmanager
async def relays(database: Database, sink: Sink) -> AsyncIterator[Relays]:
    """Run the relays of all shards until the block ends, then drain them as a worker does that shuts down."""
    client = await Client.connect("127.0.0.1:1", lazy=True)  # used for failing messages only: never connected
    outbox = OutboxActivities(database, client, Names("bench"), {SinkKind.WEBHOOK: sink}, worker_id="bench")
    await _warm(database)
    listening = asyncio.create_task(outbox.listen())
    environments = [ActivityEnvironment() for _ in range(SHARDS)]
    running = Relays(
        [asyncio.create_task(environment.run(outbox.relay, shard)) for shard, environment in enumerate(environments)]
    )
    try:
        yield running
    finally:
        for environment in environments:
            environment.worker_shutdown()
        await running.ended()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _warm(database: Database) -> None:
    """Open the connections that the relays will want: a worker has them when events come."""
    async with AsyncExitStack() as stack:
        for _ in range(3 * SHARDS):
            await stack.enter_async_context(database.read())


async def drain(url: str, sink: Sink, count: int, *, look_at: str | None = None) -> Drained:
    """Carry what waits in the database, to the last settled row; the clock starts with the relays.

    `look_at`: where to look whether all is settled, if not by the same way.
    """
    async with opened(url) as database, _look(look_at or url) as connection:
        async with relays(database, sink) as running:
            await running.until(_settled(connection, count))
            seconds = running.seconds
        finished = await connection.fetchval("SELECT count(*) FROM outbox_finished WHERE status = 'DELIVERED'")
    assert finished == count, "each event is settled once"
    return Drained(count, seconds)


async def drain_to_nowhere(url: str, count: int, *, look_at: str | None = None) -> Drained:
    """Carry what waits to a sink that does nothing."""
    sink = NoOpSink()
    drained = await drain(url, sink, count, look_at=look_at)
    assert (sink.count, sink.out_of_order) == (count, 0), "each event once, each lane in order"
    return drained


async def _settled(connection: asyncpg.Connection, count: int) -> None:
    while await connection.fetchval("SELECT sum(dispatched) FROM outbox_shards") < count:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_SECONDS)


@asynccontextmanager
async def _look(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def in_order(url: str, event_ids: Sequence[str]) -> bool:
    """Whether events that arrived in this order did so in each lane's order."""
    async with _look(url) as connection:
        rows = await connection.fetch("SELECT CAST(event_id AS text) AS event_id, lane, position FROM outbox_events")
    places = {row["event_id"]: (row["lane"], row["position"]) for row in rows}
    last: dict[str, int] = {}
    for event_id in event_ids:
        lane, position = places[event_id]
        if position <= last.get(lane, 0):
            return False
        last[lane] = position
    return True


async def settled_batches(url: str) -> dict[int, list[int]]:
    """How many messages each transaction settled, shard by shard, in the order in which it happened."""
    async with _look(url) as connection:
        rows = await connection.fetch("""
            SELECT e.shard, count(*) AS size FROM outbox_finished f JOIN outbox_events e USING (position)
            GROUP BY e.shard, f.finished_at ORDER BY f.finished_at
        """)
    batches: dict[int, list[int]] = {}
    for row in rows:
        batches.setdefault(row["shard"], []).append(row["size"])
    return batches
