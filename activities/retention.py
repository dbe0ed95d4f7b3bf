"""Deleting what has been over for long, a little at a time."""

from __future__ import annotations

from collections import Counter
from functools import partial

from temporalio import activity

from activities.jobs import job_run
from db import retention
from db.engine import Database
from domain.ops import Job

_BATCH = 500


class RetentionActivities:
    """Goes through the past in short transactions, oldest first. Doing it again only finds less."""

    def __init__(self, database: Database, *, retention_days: int, batch: int = _BATCH) -> None:
        self._database = database
        self._retention_days = retention_days
        self._batch = batch

    @activity.defn
    async def delete_what_is_over(self) -> dict[str, int]:
        """Delete what ended before the retention's days; answer how many rows of which table.

        Orders, reservations, deliveries, assignments, products, the ledger and the audit are kept for ever.
        """
        async with job_run(self._database, Job.RETENTION) as run:
            deleted = await self._events()
            for table in retention.OLD_ROWS:
                deleted[table] = await self._old_rows(table)
            run.result = dict(deleted)
        return dict(deleted)

    async def _events(self) -> Counter[str]:
        deleted: Counter[str] = Counter()
        after: int | None = 0
        while after is not None:
            batch = await self._database.transact(
                partial(retention.delete_events, after=after, days=self._retention_days, limit=self._batch)
            )
            deleted.update(batch.deleted)
            after = batch.next_after
            activity.heartbeat(after)
        return deleted

    async def _old_rows(self, table: str) -> int:
        total = 0
        while True:
            deleted = await self._database.transact(
                partial(retention.delete_old_rows, table=table, days=self._retention_days, limit=self._batch)
            )
            total += deleted
            activity.heartbeat(total)
            if deleted < self._batch:
                return total
