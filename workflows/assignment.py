"""A zone's dispatch: one round after the other, whenever there is something to do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities.assignment import DEADLINES_TOGETHER_SECONDS, AssignmentActivities, RoundOutcome
    from domain.ids import DISPATCH_WORKFLOW, WAKE_SIGNAL

_ROUNDS_PER_RUN = 100


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

    @workflow.run
    async def run(self, zone: str, woken: bool = False, deadline: float | None = None) -> None:
        """Dispatch for ever; continues as new before the history grows long."""
        for _ in range(_ROUNDS_PER_RUN):
            # What is due does not wait for a batch, whether news came as well or not.
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
            self._deadline = None
            if outcome.deadline_seconds is not None:
                self._deadline = workflow.time() + outcome.deadline_seconds
                if at_once:  # an offer that somebody holds locked is asked for again, but not without a pause
                    self._deadline = max(self._deadline, began + DEADLINES_TOGETHER_SECONDS)
            if outcome.at_once:
                self._deadline = workflow.time()
            workflow.set_current_details(self._tell(outcome))
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(args=[zone, self._woken, self._deadline])

    @workflow.signal(name=WAKE_SIGNAL)
    def wake(self) -> None:
        """There is something to do in the zone."""
        self._woken = True

    async def _something_to_do(self) -> bool:
        """Wait for a wake-up, or for the deadline where there is one; answer whether that has come."""
        left = None if self._deadline is None else max(self._deadline - workflow.time(), 0.0)
        if left == 0.0:
            return True
        try:
            await workflow.wait_condition(lambda: self._woken, timeout=left, timeout_summary="the next offer ends")
        except TimeoutError:
            return True
        return False

    def _tell(self, outcome: RoundOutcome) -> str:
        told = f"Last round: {outcome.assigned} given, {outcome.conflicts} conflicts."
        if outcome.at_once:
            return f"{told} The next one follows at once."
        if self._deadline is None:
            return f"{told} Nobody is being asked."
        return f"{told} The next offer ends at {datetime.fromtimestamp(self._deadline, UTC):%H:%M:%S} UTC."
