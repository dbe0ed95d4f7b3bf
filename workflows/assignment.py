"""A zone's dispatch: one round after the other, whenever there is something to do."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities.assignment import AssignmentActivities
    from domain.ids import DISPATCH_WORKFLOW, WAKE_SIGNAL

_ROUNDS_PER_RUN = 200


@workflow.defn(name=DISPATCH_WORKFLOW)
class DispatchWorkflow:
    """Sleeps until its zone is woken, runs a round, sleeps again: two workflow tasks and about ten events a round."""

    @workflow.init
    def __init__(self, zone: str, woken: bool = False) -> None:
        self._woken = woken

    @workflow.run
    async def run(self, zone: str, woken: bool = False) -> None:
        """Dispatch for ever; continues as new before the history grows long."""
        for _ in range(_ROUNDS_PER_RUN):
            await workflow.wait_condition(lambda: self._woken)
            self._woken = False
            outcome = await workflow.execute_activity_method(
                AssignmentActivities.run_round,
                zone,
                start_to_close_timeout=timedelta(minutes=5),
                heartbeat_timeout=timedelta(seconds=10),
                retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
                summary=f"zone {zone}",
            )
            workflow.set_current_details(f"Last round: {outcome.assigned} assigned, {outcome.conflicts} conflicts.")
            self._woken = self._woken or outcome.again
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(args=[zone, self._woken])

    @workflow.signal(name=WAKE_SIGNAL)
    def wake(self) -> None:
        """There is something to do in the zone."""
        self._woken = True
