"""A zone's dispatch: one round after the other, whenever there is something to do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities.assignment import AssignmentActivities, RoundOutcome
    from domain.ids import DISPATCH_RULE, DISPATCH_RULE_MEMO, DISPATCH_WORKFLOW, WAKE_SIGNAL

_ROUNDS_PER_RUN = 100
# These are part of the rule: they decide whether a timer starts, which a history that is replayed has to say as well.
_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 3.0
"""Where somebody holds the offers that are over: the pause doubles up to this, round by round."""
_OLD_RULE = 0
"""Of runs that were begun when woken rounds were never at once, until their 100 rounds are over: they replay by it.

To be deleted with its histories in tests/workflows/histories, once no zone's dispatch is without the memo.
"""
_OLD_PAUSE_SECONDS = 0.5


@workflow.defn(name=DISPATCH_WORKFLOW)
class DispatchWorkflow:
    """Sleeps until its zone is woken or an offer ends, runs a round, sleeps again.

    Two workflow tasks and about twelve events a round. `deadline`: when the zone's next offer ends, in seconds by
    Temporal's clock; the database's decides, this only says when to ask it.
    """

    @workflow.init
    def __init__(self, zone: str, woken: bool = False, deadline: float | None = None) -> None:
        self._woken = woken
        self._deadline = deadline
        self._rounds_held = 0
        self._rule = workflow.memo_value(DISPATCH_RULE_MEMO, _OLD_RULE, type_hint=int)

    @workflow.run
    async def run(self, zone: str, woken: bool = False, deadline: float | None = None) -> None:
        """Dispatch for ever; continues as new before the history grows long."""
        for _ in range(_ROUNDS_PER_RUN):
            at_once = await self._something_to_do()
            self._woken = False
            began = workflow.time()
            outcome: RoundOutcome = await workflow.execute_activity_method(
                AssignmentActivities.run_round,
                args=[zone, at_once],
                start_to_close_timeout=timedelta(minutes=5),
                heartbeat_timeout=timedelta(seconds=10),
                retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
                summary=f"zone {zone}, at once" if at_once else f"zone {zone}",
            )
            self._woken = self._woken or outcome.again
            self._rounds_held = self._rounds_held + 1 if outcome.held else 0
            self._deadline = None
            if outcome.deadline_seconds is not None:
                next_seconds = workflow.time() + outcome.deadline_seconds
                self._deadline = max(next_seconds, began + self._pause_seconds(at_once, outcome))
            if outcome.at_once:
                self._deadline = workflow.time()
            workflow.set_current_details(self._tell(outcome))
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(args=[zone, self._woken, self._deadline], memo={DISPATCH_RULE_MEMO: DISPATCH_RULE})

    @workflow.signal(name=WAKE_SIGNAL)
    def wake(self) -> None:
        """There is something to do in the zone."""
        self._woken = True

    async def _something_to_do(self) -> bool:
        """Wait for a wake-up, or for the deadline where there is one; answer whether the round is at once."""
        left = None if self._deadline is None else max(self._deadline - workflow.time(), 0.0)
        due = left == 0.0
        if not due and not self._woken:
            try:
                await workflow.wait_condition(lambda: self._woken, timeout=left, timeout_summary="the next offer ends")
            except TimeoutError:
                due = True
        if self._rule == _OLD_RULE:
            return not self._woken
        return due  # which does not wait for a batch, whether news came as well or not

    def _pause_seconds(self, at_once: bool, outcome: RoundOutcome) -> float:
        """How long after a round's beginning the next deadline comes at the earliest: none is asked for without end."""
        if self._rule == _OLD_RULE:
            return _OLD_PAUSE_SECONDS if at_once else 0.0
        if outcome.held:
            return min(_PAUSE_SECONDS * 2.0 ** (self._rounds_held - 1), _LONGEST_PAUSE_SECONDS)
        return _PAUSE_SECONDS if at_once else 0.0

    def _tell(self, outcome: RoundOutcome) -> str:
        told = f"Last round: {outcome.assigned} given, {outcome.conflicts} conflicts."
        if outcome.at_once:
            return f"{told} The next one follows at once."
        if self._deadline is None:
            return f"{told} Nobody is being asked."
        return f"{told} The next offer ends at {datetime.fromtimestamp(self._deadline, UTC):%H:%M:%S} UTC."
