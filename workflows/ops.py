"""Watching over all of it."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities.ops import CrossCheckResult, OpsActivities
    from activities.retention import RetentionActivities


@workflow.defn
class CrossCheckWorkflow:
    """Makes rows and workflows agree: by schedule, at start-up and on demand. Fails visibly where a guard stops it."""

    @workflow.run
    async def run(self, known_loss: bool = False) -> CrossCheckResult:
        """Answer what was mended."""
        result = await workflow.execute_activity_method(
            OpsActivities.cross_check,
            known_loss,
            start_to_close_timeout=timedelta(minutes=30),
            heartbeat_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
            summary="rows and workflows",
        )
        mended = len(result.orders_restarted) + len(result.orders_told) + len(result.orders_ended)
        workflow.set_current_details(f"{mended} orders mended.")
        return result


@workflow.defn
class RetentionWorkflow:
    """Deletes what is long over, by schedule. What is still needed stays, however old."""

    @workflow.run
    async def run(self) -> dict[str, int]:
        """Answer how many of what were deleted."""
        deleted = await workflow.execute_activity_method(
            RetentionActivities.delete_what_is_over,
            start_to_close_timeout=timedelta(hours=1),
            heartbeat_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(maximum_interval=timedelta(minutes=1)),
            summary="what is long over",
        )
        workflow.set_current_details(", ".join(f"{count} {what}" for what, count in deleted.items()))
        return deleted
