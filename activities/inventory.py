"""Sweeping overdue holds, and setting drifted counters right."""

from __future__ import annotations

from functools import partial

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.jobs import job_run
from db import order as orders
from db.engine import DATABASE_ERRORS, Database, error_code, is_passing
from db.inventory import drift, holds
from domain.inventory import ReconcileProgress
from domain.ops import Job

_SWEEP_BATCH = 200
_RECONCILE_CHUNK = 100


class InventoryActivities:
    """Works on many rows, one transaction each, so that nobody waits long for a lock."""

    def __init__(self, database: Database, *, sweep_grace_seconds: int) -> None:
        self._database = database
        self._sweep_grace_seconds = sweep_grace_seconds

    @activity.defn
    async def sweep_holds(self) -> int:
        """End every hold that is overdue by more than the grace, whatever became of its workflow; answer how many."""
        async with job_run(self._database, Job.SWEEP) as run:
            swept = await self._sweep()
            run.result = {"overdueOrders": swept}
        return swept

    async def _sweep(self) -> int:
        """One order that cannot be had now must not keep the rest waiting: it is named when they are done."""
        swept = 0
        locked: dict[str, str] = {}
        while True:
            async with self._database.read() as connection:
                limit = _SWEEP_BATCH + len(locked)
                overdue = await holds.overdue_orders(connection, self._sweep_grace_seconds, limit)
            left = [order_id for order_id in overdue if order_id not in locked]
            for order_id in left:
                activity.heartbeat(swept)
                try:
                    await self._database.transact(partial(orders.expire, order_id=order_id, outside=True))
                    swept += 1
                except DATABASE_ERRORS as error:
                    if not is_passing(error):
                        raise
                    locked[order_id] = error_code(error)
            if len(overdue) < limit:
                break
        if locked:
            raise ApplicationError(f"{swept} overdue orders expired, {len(locked)} could not be had: {locked}")
        return swept

    @activity.defn
    async def reconcile(self, operation_id: str, progress: ReconcileProgress) -> ReconcileProgress:
        """Set the operation's next chunk of drifted products right, or log what a dry run would."""
        async with job_run(self._database, Job.RECONCILE) as run:
            progress = await self._reconcile(operation_id, progress)
            run.result = {"operationId": operation_id, "driftedProducts": progress.drifted_products}
        return progress

    async def _reconcile(self, operation_id: str, progress: ReconcileProgress) -> ReconcileProgress:
        async with self._database.read() as connection:
            found = await drift.get_reconciliation(connection, operation_id)
            if found is None:
                raise ApplicationError(f"there is no reconciliation {operation_id}", non_retryable=True)
            reconciliation, _ = found
            skus = await drift.drifted_skus(connection, reconciliation.skus, progress.after_sku, _RECONCILE_CHUNK)
        for sku in skus:
            await self._database.transact(partial(drift.reconcile_product, reconciliation=reconciliation, sku=sku))
            activity.heartbeat(sku)
        done = len(skus) < _RECONCILE_CHUNK
        if done:
            await self._database.transact(partial(drift.finish_reconciliation, operation_id=operation_id))
        after_sku = skus[-1] if skus else progress.after_sku
        return ReconcileProgress(progress.drifted_products + len(skus), after_sku, done)
