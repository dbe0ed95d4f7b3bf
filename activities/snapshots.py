"""Capturing a snapshot of the house."""

from __future__ import annotations

from functools import partial

from temporalio import activity

from db import reports, snapshots
from db.engine import Database


class SnapshotActivities:
    """Reads everything in one transaction and keeps it."""

    def __init__(self, database: Database, *, sweep_grace_seconds: int) -> None:
        self._database = database
        self._sweep_grace_seconds = sweep_grace_seconds

    @activity.defn
    async def capture_snapshot(self, snapshot_id: str) -> None:
        """Capture what was asked for, once: a snapshot that is settled stays as it is."""
        async with self._database.read() as connection:
            if not await snapshots.is_running(connection, snapshot_id):
                return
            content = await reports.capture(connection, self._sweep_grace_seconds)
        await self._database.transact(partial(snapshots.store_snapshot, snapshot_id=snapshot_id, content=content))
