"""Taking a snapshot of the house."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities.snapshots import SnapshotActivities


@workflow.defn
class SnapshotWorkflow:
    """Captures metrics, failures, drift, invariants and health, and stores them."""

    @workflow.run
    async def run(self, snapshot_id: str) -> None:
        """Be done when the snapshot is stored."""
        await workflow.execute_activity_method(
            SnapshotActivities.capture_snapshot,
            snapshot_id,
            start_to_close_timeout=timedelta(minutes=2),
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
            summary="metrics, failures, drift, invariants, health",
        )
        workflow.set_current_details("Stored.")
