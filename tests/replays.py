"""Workflows run again from their histories, as by a worker that takes over from one that died."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from temporalio.client import WorkflowHandle
from temporalio.worker import Replayer

from worker import WORKFLOWS


async def replay(handles: Iterable[WorkflowHandle[Any, Any]]) -> None:
    """Replay them. Raises where the code does not do what the history says that it did."""
    replayer = Replayer(workflows=WORKFLOWS)
    for handle in handles:
        await replayer.replay_workflow(await handle.fetch_history())
