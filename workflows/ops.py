"""Watching over all of it."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities.ops import CrossCheckResult, OpsActivities


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
