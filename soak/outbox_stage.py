"""What the outbox's runs stand on: a house without a worker, worker processes to kill, and events to carry."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from temporalio.client import Client
from temporalio.service import RPCError

from db.outbox.write import write_events
from domain.ids import LOOK_AGAIN_SIGNAL
from domain.outbox import SHARDS, Event, EventType, message_id, order_event
from soak.outbox_receiver import Receiver
from tests.houses import House, open_house
from tests.processes import worker_process
from tests.waiting import eventually

PATIENCE_SECONDS = 600.0

# As if the pause before their next try were over.
_HURRY = """
    UPDATE outbox_failures SET next_attempt_at = now()
    WHERE status = 'RETRYING' AND attempt_began_at IS NULL AND next_attempt_at > now()
    RETURNING position, endpoint_id
"""


@dataclass
class Promises:
    """What a run measured, one line for each promise."""

    lines: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """Figures of time that are over their bound: a busy machine may be to blame."""

    def hold(self, promise: str, kept: bool, measured: str) -> None:
        """Note whether a promise was kept, and by what that shows."""
        self._note(promise, kept, measured, self.broken)

    def in_time(self, promise: str, kept: bool, measured: str) -> None:
        """The same of a promise about time."""
        self._note(promise, kept, measured, self.late)

    def _note(self, promise: str, kept: bool, measured: str, broken: list[str]) -> None:
        line = f"{'kept  ' if kept else 'BROKEN'} {promise}: {measured}"
        self.lines.append(line)
        if not kept:
            broken.append(line)

    def measured(self, what: str) -> None:
        """Note a figure that nothing is promised of."""
        self.lines.append(f"       {what}")


@dataclass
class Stage:
    """A house without a worker of its own; workers are processes, started and killed here."""

    house: House
    promises: Promises
    _temporal_address: str
    _log: Path
    _written: Counter[str] = field(default_factory=Counter)
    """By order: how many events it has."""
    _processes: ExitStack = field(default_factory=ExitStack)

    # --- workers

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start a worker process; at the latest it is killed when the run is over."""
        worker = worker_process(self.house.settings, self._temporal_address, self._log)
        return self._processes.enter_context(worker)

    async def stop(self) -> None:
        """Kill what runs, and end what would go on looking for workers."""
        self._processes.close()
        for shard in range(SHARDS):
            with suppress(RPCError):
                await self.house.temporal.get_workflow_handle(self.house.names.relay(shard)).terminate(
                    "the run is over"
                )

    async def shards_of(self, worker: subprocess.Popen[bytes]) -> list[int]:
        """The shards whose relay the worker runs."""
        owned = await self.house.sql(
            "SELECT shard FROM outbox_shards WHERE owner LIKE :owner ORDER BY shard", owner=f"%-{worker.pid}-%"
        )
        return [shard for (shard,) in owned]

    async def shared_by(self, *workers: subprocess.Popen[bytes]) -> None:
        """Wait until the workers carry as many shards each."""

        async def fair() -> bool:
            return all([len(await self.shards_of(worker)) == SHARDS // len(workers) for worker in workers])

        await eventually(fair, PATIENCE_SECONDS)

    # --- events

    async def webhook(self, name: str, url: str, *event_types: EventType) -> None:
        """Make a webhook through the API, for all events unless some are named."""
        await self.house.webhook(name, url, **({"eventTypes": list(event_types)} if event_types else {}))

    def event(self, order: str, event_type: EventType = EventType.ORDER_CONFIRMED) -> Event:
        """The order's next event."""
        number = self._written[order]
        self._written[order] += 1
        lines = [{"sku": "tea", "quantity": 1}]
        data = {"number": number, "status": "CONFIRMED", "customerId": "c-1", "zone": "north", "lines": lines}
        return order_event(event_type, order, order, data)

    async def write(self, events: Sequence[Event]) -> None:
        """Write them in one transaction."""
        await self.house.database.transact(partial(write_events, events=events))

    async def write_many(
        self,
        count: int,
        orders: Sequence[str],
        event_type: EventType = EventType.ORDER_CONFIRMED,
        *,
        at_once: int = 100,
        pause_seconds: float = 0.0,
    ) -> list[Event]:
        """Write so many events, the orders taking turns, so many in a transaction; answer them."""
        events = [self.event(orders[number % len(orders)], event_type) for number in range(count)]
        for first in range(0, count, at_once):
            await self.write(events[first : first + at_once])
            await asyncio.sleep(pause_seconds)
        return events

    async def hurry_retries(self) -> None:
        """Have every failing message tried again now: its row says so, and its workflow is told to look."""
        for position, endpoint_id in await self.house.sql(_HURRY):
            workflow_id = self.house.names.failure(message_id(position, endpoint_id))
            with suppress(RPCError):  # it has not been started yet, and will find the row as it is
                await self.house.temporal.get_workflow_handle(workflow_id).signal(LOOK_AGAIN_SIGNAL)

    # --- what became of them

    async def count(self, table: str, condition: str = "true") -> int:
        """How many rows of a table, which may be joined with its webhook `endpoint`, are so."""
        [[count]] = await self.house.sql(f"""
            SELECT count(*) FROM {table} JOIN outbox_endpoints endpoint USING (endpoint_id)
            WHERE endpoint.kind = 'webhook' AND {condition}
        """)  # noqa: S608
        return int(count)

    async def delivered(self, count: int) -> None:
        """Wait until so many messages are delivered."""

        async def reached() -> bool:
            return await self.count("outbox_finished", "status = 'DELIVERED'") >= count

        await eventually(reached, PATIENCE_SECONDS)

    async def undelivered(self) -> int:
        """How many messages are ready, parked or failing, in one look: they go from one to another."""
        [[count]] = await self.house.sql("""
            SELECT count(*) FROM (
                SELECT endpoint_id FROM outbox_messages UNION ALL SELECT endpoint_id FROM outbox_parked
                UNION ALL SELECT endpoint_id FROM outbox_failures WHERE status IN ('RETRYING', 'FAILED')
            ) message JOIN outbox_endpoints endpoint USING (endpoint_id) WHERE endpoint.kind = 'webhook'
        """)
        return int(count)

    async def dispatched(self) -> int:
        """What the fleet's counter says."""
        return int(await self.house.metric("ops_outbox_dispatched_total"))

    def hold_lanes(self, receivers: Sequence[Receiver], events: Sequence[Event]) -> None:
        """Promise that the receivers have applied these events: all of them, once each, each lane in order."""
        due: dict[str, int] = Counter(event.subject for event in events)
        total, ids = len(events) * len(receivers), {event.event_id for event in events}
        reached = sum(len(ids & receiver.times.keys()) for receiver in receivers)
        self.promises.hold("every event reached each endpoint", reached == total, f"{reached:,} of {total:,}")
        applied = sum(len(numbers) for receiver in receivers for numbers in receiver.applied.values())
        lost = [receiver for receiver in receivers if not receiver.has_applied(ids)]
        calls = sum(receiver.times.total() for receiver in receivers)
        self.promises.hold(
            "each was applied once by receivers that look only at webhook-id",
            applied == total and not lost,
            f"{applied:,} applied, in {calls:,} calls",
        )
        right = sum(
            receiver.applied[order] == list(range(count)) for receiver in receivers for order, count in due.items()
        )
        lanes = len(due) * len(receivers)
        self.promises.hold("each lane was applied in order, without a gap", right == lanes, f"{right:,} of {lanes:,}")


def kill(worker: subprocess.Popen[bytes]) -> None:
    """`kill -9`."""
    worker.send_signal(signal.SIGKILL)
    worker.wait()


@asynccontextmanager
async def open_stage(
    database_url: str, client: Client, temporal_address: str, installation: str, log: Path
) -> AsyncIterator[Stage]:
    """A stage on a migrated, empty database."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(open_house(database_url, client, installation, worker=False))
        stage = Stage(house, Promises(), temporal_address, log)
        stack.push_async_callback(stage.stop)
        yield stage
