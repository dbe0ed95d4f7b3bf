"""Relays that are frozen and wake up late, relays that are killed, and what relays write into Temporal's histories."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from dataclasses import dataclass, field

from domain.outbox import SHARDS
from soak.outbox_receiver import Receiver
from soak.outbox_stage import PATIENCE_SECONDS, Stage, kill
from tests.waiting import eventually

_ORDERS = [f"o-{number}" for number in range(200)]
_REPLACED_SECONDS = 8.0
_HISTORY_EVENTS = 12

# Every statement that ends something updates the shard's row, which names the relay that may; a session is named after
# its worker. A relay that has lost its shard and does something leaves a row in the first table. In the second one is
# what its relay had in flight when a shard was taken from it.
_WATCH = (
    "CREATE TABLE soak_late (shard int, owner text, session text)",
    "CREATE TABLE soak_taken (shard int, owner text, event_id uuid)",
    """
    CREATE FUNCTION soak_watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.epoch <> OLD.epoch THEN
            INSERT INTO soak_taken SELECT OLD.shard, OLD.owner, e.event_id
            FROM outbox_claims claim JOIN outbox_messages m ON m.shard = claim.shard
                AND m.endpoint_id = claim.endpoint_id AND m.position = ANY(claim.positions)
            JOIN outbox_events e ON e.position = m.event_position WHERE claim.shard = OLD.shard;
        ELSIF NEW.owner <> current_setting('application_name') THEN
            INSERT INTO soak_late VALUES (NEW.shard, NEW.owner, current_setting('application_name'));
        END IF;
        RETURN NULL;
    END $$
    """,
    "CREATE TRIGGER soak_watch AFTER UPDATE ON outbox_shards FOR EACH ROW EXECUTE FUNCTION soak_watch()",
)


@dataclass
class FreezeRun:
    """A relay is stopped in the middle of its work until another one has its shards, and then let go on."""

    stage: Stage
    events: int
    answer_seconds: float = 0.05
    _receiver: Receiver = field(init=False)

    async def run(self) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
        """Run it; answer the workers, which share the shards again."""
        for statement in _WATCH:
            await self.stage.house.sql(statement)
        self._receiver = Receiver(answer_seconds=self.answer_seconds)
        # It carries all shards: one that has room for more may be given, while frozen, the very ones it has lost.
        frozen = self.stage.start_worker()
        async with self._receiver.listening() as url:
            await self.stage.webhook("shop", url)
            await self.stage.shared_by(frozen)
            writing = asyncio.create_task(self.stage.write_many(self.events, _ORDERS, at_once=200))
            await self._some_arrived()
            frozen.send_signal(signal.SIGSTOP)
            frozen_at, other = time.monotonic(), self.stage.start_worker()
            events = await writing
            in_flight = await self._in_flight_when_taken(frozen, other)
            seconds = time.monotonic() - frozen_at
            before = await self.stage.undelivered()
            frozen.send_signal(signal.SIGCONT)
            await self.stage.delivered(self.events)
            await self.stage.shared_by(frozen, other)  # it has seen that it lost them, and has been given others
        self.stage.promises.measured(
            f"frozen with {len(in_flight)} messages in flight; "
            f"woken after {seconds:.1f} s, when they were another's and {before:,} messages were still waiting"
        )
        self.stage.hold_lanes([self._receiver], events)
        await self._judge(in_flight)
        return frozen, other

    async def _some_arrived(self) -> None:
        async def some() -> bool:
            return self._receiver.applied_count > self.events // 20

        await eventually(some, PATIENCE_SECONDS)

    async def _in_flight_when_taken(self, frozen: subprocess.Popen[bytes], other: subprocess.Popen[bytes]) -> set[str]:
        """Wait until the other worker has every shard, and has begun with what was in flight; answer those ids."""

        async def begun() -> set[str] | None:
            if len(await self.stage.shards_of(other)) < SHARDS:
                return None
            in_flight = await self._taken_from(f"%-{frozen.pid}-%")
            return in_flight if await self._settled(in_flight) > 0 else None

        return await eventually(begun, PATIENCE_SECONDS) or set()

    async def _taken_from(self, owner: str = "%") -> set[str]:
        taken = await self.stage.house.sql(
            "SELECT CAST(event_id AS text) FROM soak_taken WHERE owner LIKE :owner", owner=owner
        )
        return {event_id for (event_id,) in taken}

    async def _settled(self, event_ids: set[str]) -> int:
        [[count]] = await self.stage.house.sql(
            """
            SELECT count(*) FROM outbox_finished JOIN outbox_events USING (position)
            WHERE event_id = ANY(CAST(:event_ids AS uuid[]))
            """,
            event_ids=list(event_ids),
        )
        return int(count)

    async def _judge(self, in_flight: set[str]) -> None:
        promises = self.stage.promises
        [[late]] = await self.stage.house.sql("SELECT count(*) FROM soak_late")
        delivered = await self.stage.count("outbox_finished", "status = 'DELIVERED'")
        counted, failing = await self.stage.dispatched(), await self.stage.count("outbox_failures")
        [[blamed]] = await self.stage.house.sql("""
            SELECT count(*) FROM outbox_attempts JOIN outbox_events event ON event.position = event_position
            WHERE event.event_id NOT IN (SELECT event_id FROM soak_taken)
        """)
        promises.hold(
            "a relay that was frozen settles nothing after it has lost its shard, and blames nobody",
            late == failing == blamed == 0 and delivered == counted == self.events,
            f"{late} late settlements, {failing + blamed} blamed; delivered {delivered:,}, counter {counted:,}",
        )
        again = {event_id for event_id, times in self._receiver.times.items() if times > 1}
        stray = again - await self._taken_from()
        others = len((again - stray) - in_flight)  # a busy machine may have made a relay miss its heartbeats
        promises.hold(
            "the receiver got nothing twice but what was in flight when its shard was taken from a relay",
            not stray,
            f"{len(again)} twice, {others} of them of a relay that was not frozen, {len(stray)} of none",
        )
        settled = await self._settled(in_flight)
        promises.hold(
            "what was in flight was sent by the new owner",
            settled == len(in_flight) == sum(self._receiver.times[each] > 0 for each in in_flight),
            f"{settled} of {len(in_flight)}",
        )


async def kill_and_wait(
    stage: Stage, workers: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]], kills: int
) -> None:
    """Kill one of two workers again and again; measure how long its shards are without a relay."""
    doomed, other = workers
    seconds: list[float] = []
    for _ in range(kills):
        await stage.shared_by(doomed, other)
        lost = await stage.shards_of(doomed)
        [[killed_at]] = await stage.house.sql("SELECT clock_timestamp()")
        kill(doomed)

        async def taken(lost: list[int] = lost, other: subprocess.Popen[bytes] = other) -> bool:
            return set(lost) <= set(await stage.shards_of(other))

        await eventually(taken, PATIENCE_SECONDS)
        [[taken_at]] = await stage.house.sql(
            "SELECT max(taken_at) FROM outbox_shards WHERE shard = ANY(CAST(:lost AS int[]))", lost=lost
        )
        seconds.append((taken_at - killed_at).total_seconds())
        doomed, other = other, stage.start_worker()
    told = ", ".join(f"{each:.1f} s" for each in seconds)
    stage.promises.in_time("a killed relay is replaced within 8 s", max(seconds) <= _REPLACED_SECONDS, told)


async def history_run(stage: Stage, count: int) -> None:
    """So many healthy events, and what they add to the histories of the relays' workflows."""
    receiver = Receiver()
    stage.start_worker()
    async with receiver.listening() as url:
        await stage.webhook("shop", url)
        await stage.write_many(1, _ORDERS)
        await stage.delivered(1)
        before = [await _history_events(stage, shard) for shard in range(SHARDS)]
        await stage.write_many(count, _ORDERS)
        await stage.delivered(count + 1)
        after = [await _history_events(stage, shard) for shard in range(SHARDS)]
    added = [now - then for then, now in zip(before, after, strict=True)]
    stage.promises.hold(
        f"{count:,} healthy events add at most {_HISTORY_EVENTS} history events to each shard",
        max(added) <= _HISTORY_EVENTS,
        f"{', '.join(str(each) for each in added)} added to {', '.join(str(each) for each in before)}",
    )


async def _history_events(stage: Stage, shard: int) -> int:
    """Of all runs of the shard's workflow together."""
    temporal, workflow_id = stage.house.temporal, stage.house.names.relay(shard)
    total = 0
    async for run in temporal.list_workflows(f"WorkflowId = '{workflow_id}'"):
        described = await temporal.get_workflow_handle(workflow_id, run_id=run.run_id).describe()
        total += described.history_length
    return total
