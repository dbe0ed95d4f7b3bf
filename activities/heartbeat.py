"""Heartbeats of an activity that has nothing to report but that it is alive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from temporalio import activity


@contextlib.asynccontextmanager
async def heartbeats(every_seconds: float = 2.0) -> AsyncIterator[None]:
    """Heartbeat while the block runs, so that the death of this worker is noticed within the heartbeat time-out."""

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(every_seconds)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
