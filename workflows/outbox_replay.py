"""The process of a bulk operation on failed messages."""

from __future__ import annotations

import contextlib
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities.outbox_replay import OutboxReplayActivities
    from domain.ids import LOOK_AGAIN_SIGNAL, OUTBOX_REPLAY_WORKFLOW
    from domain.outbox import ReplayProgress, ReplayStatus

_BATCHES_A_RUN = 100
_PAUSED_SECONDS = 60
_UNREACHABLE_SECONDS = 5


@workflow.defn(name=OUTBOX_REPLAY_WORKFLOW)
class OutboxReplayWorkflow:
    """Goes through the operation's frozen messages batch by batch; its row says what, and whether to go on."""

    def __init__(self) -> None:
        self._look_again = False

    @workflow.run
    async def run(self, operation_id: str) -> ReplayProgress:
        """Answer how it ended."""
        for _ in range(_BATCHES_A_RUN):
            self._look_again = False
            progress = await workflow.execute_activity_method(
                OutboxReplayActivities.replay_batch,
                operation_id,
                start_to_close_timeout=timedelta(seconds=60),
                heartbeat_timeout=timedelta(seconds=6),
                retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
                summary="the next messages",
            )
            workflow.set_current_details(_told(progress))
            if progress.status in (ReplayStatus.DONE, ReplayStatus.FAILED):
                break
            if progress.status is ReplayStatus.PAUSED:
                await self._wait(_PAUSED_SECONDS, "paused")
            elif progress.waits_for:
                await self._wait(_UNREACHABLE_SECONDS, "until the endpoint can be sent to")
        else:
            workflow.continue_as_new(operation_id)
        return progress

    async def _wait(self, seconds: int, summary: str) -> None:
        """For so long, or until the row has changed."""
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._look_again, timeout=timedelta(seconds=seconds), timeout_summary=summary
            )

    @workflow.signal(name=LOOK_AGAIN_SIGNAL)
    def look_again(self) -> None:
        """The row may have changed: an admin paused or resumed the operation."""
        self._look_again = True


def _told(progress: ReplayProgress) -> str:
    waits = f", waits for {', '.join(progress.waits_for)}" if progress.waits_for else ""
    skipped = f", {progress.skipped} skipped" if progress.skipped else ""
    return f"**{progress.status}**: {progress.done} of {progress.count} messages{skipped}{waits}"
