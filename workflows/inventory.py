"""Sweeping overdue holds and reconciling counters."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities.inventory import InventoryActivities
    from domain.inventory import ReconcileProgress


@workflow.defn
class SweepWorkflow:
    """Ends what is overdue beyond its grace; by schedule, and on demand."""

    @workflow.run
    async def run(self) -> int:
        """Answer how many orders expired."""
        swept = await workflow.execute_activity_method(
            InventoryActivities.sweep_holds,
            start_to_close_timeout=timedelta(minutes=10),
            heartbeat_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
            summary="overdue holds",
        )
        workflow.set_current_details(f"{swept} overdue orders expired.")
        return swept


@workflow.defn
class ReconcileWorkflow:
    """Sets drifted counters right, or says what it would do: chunk after chunk, each product under its own lock."""

    def __init__(self) -> None:
        self._progress = ReconcileProgress()

    @workflow.run
    async def run(self, operation_id: str) -> int:
        """Answer how many products had drifted."""
        while not self._progress.done:
            self._progress = await workflow.execute_activity_method(
                InventoryActivities.reconcile,
                args=[operation_id, self._progress],
                start_to_close_timeout=timedelta(minutes=10),
                heartbeat_timeout=timedelta(seconds=30),
                retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
                summary=f"drifted products after {self._progress.after_sku!r}",
            )
            workflow.set_current_details(f"{self._progress.drifted_products} drifted products so far.")
        return self._progress.drifted_products

    @workflow.query
    def progress(self) -> ReconcileProgress:
        """How far it is."""
        return self._progress
