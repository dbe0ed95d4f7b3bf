"""Bulk operations on failed messages, at a pace that a receiver can bear."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from temporalio import activity
from temporalio.exceptions import ApplicationError

from db.engine import Database
from db.outbox import replays
from db.outbox.replays import OperationMissing
from domain.outbox import ReplayProgress, ReplayStatus

REPLAYS_A_SECOND = 200
_BATCH = 100
_AT_ONCE = 20
"""Messages of one transaction: short locks, and what a pause waits for."""


class OutboxReplayActivities:
    """Carries out what the operation's row says, as long as it says so."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @activity.defn
    async def replay_batch(self, operation_id: str) -> ReplayProgress:
        """Decide the operation's next messages, so many a second; answer how far it is."""
        began, moved = time.monotonic(), 0
        while True:
            advance = partial(replays.advance, operation_id=operation_id, limit=_AT_ONCE)
            try:
                more, progress = await self._database.transact(advance)
            except OperationMissing:
                raise ApplicationError(f"there is no operation {operation_id}", non_retryable=True) from None
            activity.heartbeat(progress.done + progress.skipped)
            moved += more
            await asyncio.sleep(max(0.0, began + moved / REPLAYS_A_SECOND - time.monotonic()))
            over = progress.status is not ReplayStatus.RUNNING or moved >= _BATCH
            if over or not more or activity.is_worker_shutdown():
                return progress
