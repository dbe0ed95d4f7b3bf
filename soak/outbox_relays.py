"""Relays that are frozen and wake up late, relays that are killed, and what relays write into Temporal's histories."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from dataclasses import dataclass, field

from domain.outbox import SHARDS
from soak.outbox_receiver import Receiver
from soak.outbox_stage import PATIENCE_SECONDS, Stage, kill
from tests.waiting import eventually

_ORDERS = [f"o-{number}" for number in range(200)]
_REPLACED_SECONDS = 8.0
_HISTORY_EVENTS = 12

# Every statement that ends something updates the shard's row, which names the relay that may; a session is named after
# its worker. What a relay does that has lost its shard leaves a row here.
_WATCH = (
    "CREATE TABLE soak_late (shard int, owner text, session text, at timestamptz DEFAULT clock_timestamp())",
    """
    CREATE FUNCTION soak_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO soak_late (shard, owner, session)
        VALUES (NEW.shard, NEW.owner, current_setting('application_name'));
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER soak_late AFTER UPDATE ON outbox_shards FOR EACH ROW
        WHEN (NEW.owner IS DISTINCT FROM current_setting('application_name')) EXECUTE FUNCTION soak_late()
    """,
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
        workers = self.stage.start_worker(), self.stage.start_worker()
        frozen, other = workers
        async with self._receiver.listening() as url:
            await self.stage.webhook("shop", url)
            await self.stage.shared_by(*workers)
            writing = asyncio.create_task(self.stage.write_many(self.events, _ORDERS, at_once=200))
            await self._some_arrived()
            frozen.send_signal(signal.SIGSTOP)
            lost = await self.stage.shards_of(frozen)
            events = await writing
            in_flight = await self._in_flight(frozen, lost)
            await self._taken_and_resumed(other, lost, in_flight)
            before = await self.stage.undelivered()
            frozen.send_signal(signal.SIGCONT)
            await self.stage.delivered(self.events)
            await self.stage.shared_by(*workers)  # it has seen that it lost them, and has been given others
        self.stage.promises.measured(
            f"frozen with {len(in_flight)} messages in flight in {len(lost)} shards; "
            f"{before:,} were still waiting when it woke up"
        )
        self.stage.hold_lanes([self._receiver], events)
        await self._judge(in_flight)
        return workers

    async def _some_arrived(self) -> None:
        async def some() -> bool:
            return self._receiver.applied_count > self.events // 20

        await eventually(some, PATIENCE_SECONDS)

    async def _in_flight(self, frozen: subprocess.Popen[bytes], shards: list[int]) -> set[str]:
        """Ids of what the frozen relay has claimed, once PostgreSQL has done all that it had asked for."""

        async def quiet() -> bool:
            # One that waits for its client in the middle of a statement's messages counts as active too.
            busy = await self.stage.house.sql(
                """
                SELECT 1 FROM pg_stat_activity WHERE application_name LIKE :name AND state = 'active'
                    AND wait_event IS DISTINCT FROM 'ClientRead'
                """,
                name=f"%-{frozen.pid}-%",
            )
            return busy == []

        await eventually(quiet)
        claimed = await self.stage.house.sql(
            """
            SELECT CAST(event.event_id AS text) FROM outbox_claims claim
            JOIN outbox_messages m ON m.shard = claim.shard AND m.endpoint_id = claim.endpoint_id
                AND m.position = ANY(claim.positions)
            JOIN outbox_events event ON event.position = m.event_position
            WHERE claim.shard = ANY(CAST(:shards AS int[]))
            """,
            shards=shards,
        )
        return {event_id for (event_id,) in claimed}

    async def _taken_and_resumed(self, other: subprocess.Popen[bytes], lost: list[int], in_flight: set[str]) -> None:
        """Wait until the other worker has the lost shards, and is in the middle of what was in flight."""

        async def taken() -> bool:
            return set(lost) <= set(await self.stage.shards_of(other)) and await self._settled(in_flight) > 0

        await eventually(taken, PATIENCE_SECONDS)

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
        promises.hold(
            "a relay that was frozen settles nothing after it has lost its shard",
            late == failing == 0 and delivered == counted == self.events,
            f"{late} late settlements, {failing} failures; delivered {delivered:,}, counter {counted:,}",
        )
        again = {event_id for event_id, times in self._receiver.times.items() if times > 1}
        promises.hold(
            "the receiver got nothing twice but what was in flight at the freeze",
            again <= in_flight,
            f"{len(again)} twice, {len(again - in_flight)} of them not in flight",
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
