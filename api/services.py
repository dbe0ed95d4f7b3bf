"""What the routers work with; built once by `api/app.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Request
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError, RPCStatusCode

from activities.solver import Solver
from api.problems import unavailable
from db import ops
from db.engine import Database
from domain.ids import Names

_DESCRIBES_AT_A_TIME = 10
_DESCRIBE_SECONDS = 2.0
_START_SECONDS = 5.0

MISSING = "MISSING"
"""The status of a workflow that Temporal does not know."""


@dataclass(frozen=True)
class Services:
    """The API's dependencies and the few settings that its handlers need."""

    database: Database
    temporal: Client
    names: Names
    temporal_ui_url: str | None
    hold_seconds: int
    sweep_seconds: int
    cross_check_seconds: int
    sweep_grace_seconds: int
    webhook_allow_private: bool
    solver: Solver
    """Explains rounds, which takes a processor as long as deciding them did."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def workflow_url(self, workflow_id: str) -> str | None:
        """Where the Temporal UI shows a workflow; None where nobody said where that is."""
        if self.temporal_ui_url is None:
            return None
        namespace = quote(self.temporal.namespace, safe="")
        return f"{self.temporal_ui_url}/namespaces/{namespace}/workflows/{quote(workflow_id, safe='')}"

    def workflow_link(self, workflow_id: str) -> dict[str, Any]:
        """A workflow in an answer."""
        return {"id": workflow_id, "url": self.workflow_url(workflow_id)}

    async def require_worker(self) -> None:
        """Raise the problem of an empty house: what nobody would work on is not started."""
        async with self.database.read() as connection:
            alive = await ops.workers_alive(connection)
        if not alive:
            raise unavailable("no-worker", "No worker is alive, so nothing was started.")

    async def require_temporal(self) -> None:
        """Raise the problem of an unreachable Temporal, before anything is sent that might arrive after all."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                serves = await self._temporal_serves()
        except (TimeoutError, RPCError, RuntimeError) as error:
            raise unavailable("temporal-unavailable", "Temporal does not answer, so nothing was started.") from error
        if not serves:
            raise unavailable("temporal-unavailable", "Temporal does not serve, so nothing was started.")

    async def _temporal_serves(self) -> bool:
        """Ask Temporal, and once more at once: the first call finds out that a connection broke, the second makes one.

        The client's own retries would take all the time there is where nobody listens.
        """
        check = self.temporal.service_client.check_health
        try:
            return await check()
        except (RPCError, RuntimeError):
            return await check()

    async def start(
        self,
        workflow: Any,
        arguments: list[Any],
        workflow_id: str,
        *,
        summary: str | None = None,
        signal: str | None = None,
    ) -> None:
        """Start an operation's workflow, or raise the problem of nothing having been started.

        `signal`: sent to it, also where it runs already.
        """
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self.temporal.start_workflow(
                    workflow,
                    args=arguments,
                    id=workflow_id,
                    task_queue=self.names.main_queue,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    static_summary=summary,
                    start_signal=signal,
                )
        except (TimeoutError, RPCError, RuntimeError) as error:
            raise unavailable("temporal-unavailable", "Temporal does not answer.") from error

    async def workflow_statuses(self, workflow_ids: Iterable[str]) -> dict[str, str | None]:
        """Each workflow's status by Temporal: its name, MISSING, or None where Temporal did not answer in time."""
        wanted = list(dict.fromkeys(workflow_ids))
        slots = asyncio.Semaphore(_DESCRIBES_AT_A_TIME)

        async def describe(workflow_id: str) -> str | None:
            async with slots:
                return await self._describe(workflow_id)

        tasks = [asyncio.create_task(describe(workflow_id)) for workflow_id in wanted]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_DESCRIBE_SECONDS)
            for task in late:
                task.cancel()
        return {
            workflow_id: task.result() if task.done() and not task.cancelled() else None
            for workflow_id, task in zip(wanted, tasks, strict=True)
        }

    async def _describe(self, workflow_id: str) -> str | None:
        try:
            description = await self.temporal.get_workflow_handle(workflow_id).describe()
        except RPCError as error:
            return MISSING if error.status is RPCStatusCode.NOT_FOUND else None
        except RuntimeError:  # the lazy client could not connect
            return None
        return description.status.name if description.status is not None else None


RUNNING = WorkflowExecutionStatus.RUNNING.name


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
