"""Messages that their receiver never takes, beside lanes that are well."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from soak.outbox_receiver import TAKEN, Answer, Receiver
from soak.outbox_stage import PATIENCE_SECONDS, Stage
from tests.waiting import eventually

_FAILURES = "/api/admin/ops/outbox/failures"
_HEALTHY = [f"o-healthy-{number}" for number in range(50)]
_BEHIND = 3
"""Events of the poisoned lane, the poisoned one first."""
_MOST_SLOWER = 1.2
_HURRY_SECONDS = 0.2


@dataclass
class PoisonRun:
    """Spells without and with a poisoned message take turns; then one that always gets 500."""

    stage: Stage
    pairs: int
    spell_seconds: float = 5.0
    events_a_second: float = 50.0
    _statuses: dict[str, int] = field(default_factory=dict)
    """By order: what its events are answered with, if not with success."""
    _receiver: Receiver = field(init=False)
    _latencies: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    """Commit to receiver in the healthy lanes: without and with a poisoned message about."""

    async def run(self) -> None:
        """Run both parts."""
        self._receiver = Receiver(self._answer)
        self.stage.start_worker()
        async with self._receiver.listening() as url:
            await self.stage.webhook("shop", url)
            await self._spell(self.spell_seconds)  # warms up
            parked = 0
            for pair in range(self.pairs):
                for poisoned in (False, True) if pair % 2 == 0 else (True, False):
                    if poisoned:
                        parked += await self._poisoned_spell(f"o-poisoned-{pair}")
                    else:
                        self._latencies[False] += await self._spell(self.spell_seconds)
            promises = self.stage.promises
            promises.hold(
                "a poisoned message is tried 3 times, its lane alone waits, and goes on in order after a replay",
                parked == self.pairs,
                f"{parked} of {self.pairs}",
            )
            self._judge_latencies()
            await self._refused_by_500()

    def _answer(self, order: str, number: int, before: int) -> Answer:
        return Answer(self._statuses[order], applied=False) if number == 0 and order in self._statuses else TAKEN

    async def _spell(self, seconds: float) -> list[float]:
        """Commit events one by one for so long; answer how many seconds each took to the receiver."""
        committed: dict[str, float] = {}
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            event = self.stage.event(_HEALTHY[number % len(_HEALTHY)])
            await self.stage.write([event])
            committed[event.event_id] = time.monotonic()
            number += 1
            await asyncio.sleep(1 / self.events_a_second)

        async def arrived() -> bool:
            return self._receiver.has_applied(set(committed))

        await eventually(arrived, PATIENCE_SECONDS)
        # The receiver may be quicker than the answer to the commit.
        return [max(0.0, self._receiver.first_at[event_id] - at) for event_id, at in committed.items()]

    # --- 400

    async def _poisoned_spell(self, order: str) -> bool:
        """A spell with a poisoned message in it, from its first try to its last; answer whether its lane did right."""
        self._statuses[order] = 400
        await self.stage.write([self.stage.event(order) for _ in range(_BEHIND)])
        failing = asyncio.create_task(self._failed(order))
        self._latencies[True] += await self._spell(self.spell_seconds)
        item = await failing
        tried = [call.number for call in self._receiver.calls if call.order == order]
        blocking = "status IN ('RETRYING', 'FAILED')"
        others_failing = await self.stage.count("outbox_failures", blocking) - 1
        del self._statuses[order]
        replayed = await self.stage.house.call("POST", f"{_FAILURES}/{item['messageId']}/replay", {"reason": "soak"})
        assert replayed.status_code == 200, replayed.text

        async def went_on() -> bool:
            return len(self._receiver.applied[order]) == _BEHIND and await self.stage.undelivered() == 0

        await eventually(went_on, PATIENCE_SECONDS)
        right = (item["attempts"], item["errorClass"], tried, others_failing) == (3, "event", [0, 0, 0], 0)
        return right and self._receiver.applied[order] == list(range(_BEHIND))

    async def _failed(self, order: str) -> Any:
        """Hurry the order's failing message until it is FAILED; answer it as the list of failures shows it."""

        async def failed() -> Any:
            await self.stage.hurry_retries()
            await asyncio.sleep(_HURRY_SECONDS)
            items = (await self.stage.house.get(_FAILURES))["items"]
            return next((item for item in items if item["aggregateId"] == order), None)

        return await eventually(failed, PATIENCE_SECONDS)

    def _judge_latencies(self) -> None:
        p50, p99 = {}, {}
        for poisoned, seconds in self._latencies.items():
            p50[poisoned] = statistics.median(seconds) * 1000
            p99[poisoned] = statistics.quantiles(seconds, n=100, method="inclusive")[98] * 1000
        healthy, beside = self._latencies[False], self._latencies[True]
        self.stage.promises.measured(
            f"commit to receiver: healthy p50 {p50[False]:.1f} ms, p99 {p99[False]:.1f} ms ({len(healthy):,} events); "
            f"beside the poisoned one p50 {p50[True]:.1f} ms, p99 {p99[True]:.1f} ms ({len(beside):,} events)"
        )
        ratio = p99[True] / p99[False]
        self.stage.promises.in_time(
            "p99 of the other lanes is at most 1.2 times that of the healthy run", ratio <= _MOST_SLOWER, f"{ratio:.2f}"
        )

    # --- 500

    async def _refused_by_500(self) -> None:
        """One message always gets 500, the others pass: its eight tries are hurried to their end."""
        order = "o-strange"
        await self._spell(1.0)  # something has just passed
        self._statuses[order] = 500
        await self.stage.write([self.stage.event(order) for _ in range(_BEHIND)])
        failing = asyncio.create_task(self._failed(order))
        while not failing.done():
            await self._spell(0.5)
        item = await failing
        found = (item["errorClass"], item["attempts"], item["status"])
        self.stage.promises.hold(
            "one that always gets 500 while others pass is `unknown`, and FAILED after 8 tries (hurried)",
            found == ("unknown", 8, "FAILED"),
            f"{item['errorClass']}, {item['status']} after {item['attempts']}",
        )
        blamed = await self.stage.count("outbox_attempts", "error_class = 'endpoint'")
        open_now = await self.stage.house.metric('ops_outbox_endpoint_open{endpoint="shop"}')
        self.stage.promises.hold(
            "its endpoint's breaker stays closed",
            blamed == open_now == 0,
            f"opened {blamed} times",
        )
