"""Receivers that fail one call in twenty, relays killed again and again, and an admin who replays what FAILED."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from domain.outbox import Event
from soak.outbox_receiver import RESET, STALL, Faults, Receiver
from soak.outbox_stage import PATIENCE_SECONDS, Stage, kill
from tests.waiting import eventually

REPLAYS = "/api/admin/ops/outbox/replays"
_ENDPOINTS = ("shop", "warehouse", "ledger")
_LOOK_SECONDS = 0.1
_NAMES = {RESET: "resets", STALL: "time-outs", 400: "400", 500: "500"}


@dataclass
class FaultRun:
    """One run, and what was seen of it."""

    stage: Stage
    events: int
    orders: int
    kills: int
    seed: int
    stalls: float = Faults.stalls
    hurried: bool = False
    """Retries do not wait for their time."""
    seen: Counter[str] = field(default_factory=Counter)
    _receivers: list[Receiver] = field(default_factory=list)
    _over: bool = False

    async def run(self) -> None:
        """Write, fail, kill and replay until nothing is left; then look whether the promises were kept."""
        self._receivers = [Receiver(Faults(f"{self.seed} {name}", stalls=self.stalls)) for name in _ENDPOINTS]
        orders = [f"o-{self.seed}-{number}" for number in range(self.orders)]
        async with AsyncExitStack() as stack:
            for name, receiver in zip(_ENDPOINTS, self._receivers, strict=True):
                await self.stage.webhook(name, await stack.enter_async_context(receiver.listening()))
            async with asyncio.TaskGroup() as group:
                killing = group.create_task(self._kill_at_random())
                events = await self.stage.write_many(self.events, orders, at_once=50, pause_seconds=0.1)
                await self._replay_until_nothing_is_left()
                self._over = True
                await killing
        await self._judge(events)

    async def _kill_at_random(self) -> None:
        """Two workers: after so many calls one that carries shards is killed, and comes back a moment later."""
        chance, total = random.Random(self.seed), self.events * len(_ENDPOINTS)
        workers = [self.stage.start_worker(), self.stage.start_worker()]
        for moment in sorted(chance.sample(range(total // 20, total * 19 // 20), self.kills)):

            async def reached(moment: int = moment) -> bool:
                return self._over or sum(len(receiver.calls) for receiver in self._receivers) >= moment

            await eventually(reached, PATIENCE_SECONDS)
            relays = [worker for worker in workers if await self.stage.shards_of(worker)]
            if not self._over and relays:
                killed = chance.choice(relays)
                kill(killed)
                self.seen["kills"] += 1
                await asyncio.sleep(chance.uniform(0, 2))
                workers[workers.index(killed)] = self.stage.start_worker()

    async def _replay_until_nothing_is_left(self) -> None:
        """What an admin does: replays in bulk what has FAILED, again and again."""
        asked = {"filter": {}, "action": "replay", "dryRun": False, "reason": "the receiver was told"}

        async def nothing_left() -> bool:
            await asyncio.sleep(_LOOK_SECONDS)
            if self.hurried:
                await self.stage.hurry_retries()
            if await self.stage.count("outbox_failures", "status = 'FAILED'"):
                answer = await self.stage.house.call("POST", REPLAYS, asked)  # 503 while no worker lives
                if answer.status_code == 202:
                    self.seen["bulk replays"] += 1
                    self.seen["replayed"] += await self._replayed(answer.json()["operationId"])
            return await self.stage.undelivered() == 0

        await eventually(nothing_left, PATIENCE_SECONDS)

    async def _replayed(self, operation_id: str) -> int:
        async def done() -> int | None:
            operation = await self.stage.house.get(f"{REPLAYS}/{operation_id}")
            return operation["done"] if operation["status"] == "DONE" else None

        return await eventually(done, PATIENCE_SECONDS) or 0

    async def _judge(self, events: Sequence[Event]) -> None:
        promises, receivers = self.stage.promises, self._receivers
        calls = Counter(call.answer.status for receiver in receivers for call in receiver.calls)
        faults = ", ".join(f"{calls[status]:,} {name}" for status, name in _NAMES.items())
        share = 100 * sum(calls[status] for status in _NAMES) / calls.total()
        promises.measured(f"{calls.total():,} calls, of which {share:.1f}% failed: {faults}")
        promises.measured(f"{self.seen['kills']} kills; {self.seen['replayed']} messages FAILED and were replayed")
        self.stage.hold_lanes(receivers, events)
        left, total = await self.stage.undelivered(), len(events) * len(receivers)
        delivered = await self.stage.count("outbox_finished", "status = 'DELIVERED'")
        counted = await self.stage.dispatched()
        promises.hold(
            "none was lost: all are DELIVERED, none is left, and the counter agrees",
            left == 0 and delivered == counted == total,
            f"{delivered:,} of {total:,}, {left} left, counter {counted:,}",
        )
        repeated, unexplained = await self._repeats()
        promises.hold(
            "what was accepted came again only where a relay had died while sending it",
            unexplained == 0,
            f"{repeated} came again, {unexplained} of them without a death",
        )

    async def _repeats(self) -> tuple[int, int]:
        """Of the events that were answered with success, those that came again; and those of them nobody died over."""
        died = await self.stage.house.sql("""
            SELECT CAST(event.event_id AS text), endpoint.name FROM outbox_attempts attempt
            JOIN outbox_endpoints endpoint USING (endpoint_id)
            JOIN outbox_events event ON event.position = attempt.event_position
            WHERE attempt.outcome = 'interrupted'
        """)
        interrupted = {(event_id, name) for event_id, name in died}
        repeats = set()
        for name, receiver in zip(_ENDPOINTS, self._receivers, strict=True):
            accepted: set[str] = set()
            for call in receiver.calls:
                if call.event_id in accepted:
                    repeats.add((call.event_id, name))
                if call.answer.status == 204:
                    accepted.add(call.event_id)
        return len(repeats), len(repeats - interrupted)
