"""A receiver that is down while thousands of messages wait for it, and comes back."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

from domain.ids import FAILURE_WORKFLOW
from domain.outbox import SHARDS, EventType
from local.ports import free_port
from soak.outbox_receiver import Call, Receiver
from soak.outbox_stage import PATIENCE_SECONDS, Stage
from tests.waiting import eventually

_ORDERS = [f"o-{number}" for number in range(200)]
_DOWN, _UP = EventType.ORDER_CONFIRMED, EventType.ORDER_RESERVED
_LEAST_RATE = 0.9
_ANSWER_SECONDS = 0.05
"""What the receiver takes for each, so that it is seen how many it is given at a time."""


@dataclass
class DownRun:
    """`down` refuses connections with so many messages pending; `up` gets other events meanwhile."""

    stage: Stage
    pending: int
    pairs: int
    burst: int
    _up: Receiver = field(default_factory=Receiver)
    _rates: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    """Events a second at `up`: without and with `down` to look after."""

    async def run(self) -> None:
        """Run it."""
        self.stage.start_worker()
        port, down = free_port(), Receiver(answer_seconds=_ANSWER_SECONDS)
        async with self._up.listening() as up_url:
            await self.stage.webhook("up", up_url, _UP)
            await self.stage.webhook("down", f"http://127.0.0.1:{port}/", _DOWN)
            events = await self.stage.write_many(self.pending, _ORDERS, at_once=500)
            await self._breaker_opens()
            await self._burst()  # warms up
            for pair in range(self.pairs):
                for beside in (True, False) if pair % 2 == 0 else (False, True):
                    await self._enable(port, enabled=beside)
                    self._rates[beside].append(await self._burst())
            await self._enable(port, enabled=True)
            await self._nothing_was_blamed()
        async with down.listening(port):
            await self.stage.delivered(self.pending + len(self._up.times))
        self.stage.hold_lanes([down], events)
        self._judge_return(down.calls)

    async def _breaker_opens(self) -> None:
        async def opened() -> bool:
            return await self.stage.house.metric('ops_outbox_endpoint_open{endpoint="down"}') == 1

        await eventually(opened, PATIENCE_SECONDS)

    async def _enable(self, port: int, *, enabled: bool) -> None:
        """A webhook that is disabled is not even probed; what waits for it, and its breaker, stay as they are."""
        wish = {"url": f"http://127.0.0.1:{port}/", "eventTypes": [_DOWN], "enabled": enabled}
        answer = await self.stage.house.call("PUT", "/api/admin/webhooks/down", wish)
        assert answer.status_code == 200, answer.text

    async def _burst(self) -> float:
        """Commit so many events for `up` at once; answer how many arrived a second."""
        events = [self.stage.event(f"{_ORDERS[number % len(_ORDERS)]}-up", _UP) for number in range(self.burst)]
        await self.stage.write(events)
        began, due = time.monotonic(), {event.event_id for event in events}

        async def arrived() -> bool:
            return self._up.has_applied(due)

        await eventually(arrived, PATIENCE_SECONDS)
        return self.burst / (max(self._up.first_at[event_id] for event_id in due) - began)

    async def _nothing_was_blamed(self) -> None:
        promises, house = self.stage.promises, self.stage.house
        with_down, without = (statistics.median(self._rates[beside]) for beside in (True, False))
        promises.in_time(
            f"the other endpoint is as quick with {self.pending:,} messages waiting at this one (at least 0.9)",
            with_down >= _LEAST_RATE * without,
            f"{with_down:,.0f}/s, without {without:,.0f}/s, {with_down / without:.2f}",
        )
        failing = await self.stage.count("outbox_failures")
        burnt = await house.metric("ops_outbox_retry_attempts_sum")
        failed = await house.metric("ops_outbox_failed_transitions_total")
        promises.hold(
            "none FAILED, and no attempt was burnt",
            failing == burnt == failed == 0,
            f"{failing} failing, {burnt:.0f} attempts",
        )
        query = f"WorkflowType = '{FAILURE_WORKFLOW}' AND WorkflowId STARTS_WITH '{house.names.failure('')}'"
        workflows = (await house.temporal.count_workflows(query)).count
        promises.hold("no failure's workflow was started", workflows == 0, f"{workflows}")
        waiting = await self.stage.count("outbox_messages", "endpoint.name = 'down'")
        probes = await self.stage.count("outbox_attempts", "endpoint.name = 'down'")
        promises.hold("all of them wait", waiting == self.pending, f"{waiting:,}; {probes} tries in vain")

    def _judge_return(self, calls: list[Call]) -> None:
        first_second = [call for call in calls if call.at - calls[0].at < 1.0]
        peak, peak_at_first = max(call.open for call in calls), max(call.open for call in first_second)
        seconds = calls[-1].at - calls[0].at
        self.stage.promises.measured(
            f"after its return {len(first_second)} calls in the first second, at most {peak_at_first} at a time; "
            f"at most {peak} at a time later; all {len(calls):,} within {seconds:.1f} s"
        )
        stampedes = sum(call.open > SHARDS + call.answered for call in calls)
        self.stage.promises.hold(
            "it is given one message for each shard at a time, and one more for each that it has taken",
            stampedes == 0,
            f"{stampedes} calls too many; at the 1st, 10th, 100th call {_open_at(calls, 1, 10, 100)} at a time",
        )


def _open_at(calls: list[Call], *places: int) -> str:
    return ", ".join(str(calls[place - 1].open) for place in places if place <= len(calls))
