"""Metrics, invariants, the audit, and whether the process and what it stands on are up."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import Row
from temporalio.service import RPCError

from api.metrics import render_metrics
from api.models import OptionalReason, Page, actor, big_integer, time
from api.problems import unavailable
from api.services import ServicesDep
from db import ops, reports
from db.engine import DATABASE_ERRORS
from db.inventory import drift
from db.metrics import metric_families
from db.migrations import is_migrated
from domain.ids import new_id
from workflows.ops import CrossCheckWorkflow

router = APIRouter()

_READY_SECONDS = 3.0
# Prometheus says how long it waits; what comes later is read by nobody, and a scrape that hangs hides its reason.
_ON_THE_WAY_SECONDS = 0.5
_LONGEST_SCRAPE_SECONDS = 30.0
_ScrapeSeconds = Annotated[
    float, Header(alias="X-Prometheus-Scrape-Timeout-Seconds", gt=_ON_THE_WAY_SECONDS, include_in_schema=False)
]


@router.get("/api/admin/ops/metrics")
async def get_metrics(services: ServicesDep, scrape_seconds: _ScrapeSeconds = 10.0) -> Response:
    """Prometheus text, fleet-wide, from one snapshot; 503 `metrics-unavailable` where that takes too long."""
    seconds = min(scrape_seconds, _LONGEST_SCRAPE_SECONDS) - _ON_THE_WAY_SECONDS
    try:
        async with asyncio.timeout(seconds) as limit, services.database.read() as connection:
            metrics = await ops.read_metrics(connection, services.sweep_grace_seconds)
            drift_totals = await drift.drift_totals(connection)
            invariants = await ops.check_invariants(connection)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise unavailable("metrics-unavailable", "The metrics could not be read in time.") from error
    uptime_seconds = (datetime.now(UTC) - services.started_at).total_seconds()
    families = metric_families(metrics, drift_totals, invariants)
    return Response(render_metrics(families, uptime_seconds), media_type=CONTENT_TYPE_LATEST)


@router.get("/api/admin/ops/invariants")
async def get_invariants(services: ServicesDep) -> dict[str, Any]:
    """Whether every promise is kept, and by which rows not."""
    async with services.database.read() as connection:
        return reports.show_invariants(await ops.check_invariants(connection))


@router.get("/api/admin/ops/health")
async def get_health(services: ServicesDep) -> dict[str, Any]:
    """How the jobs ran, who is there, and what goes on in the database; PostgreSQL alone is asked."""
    async with services.database.read() as connection:
        return await reports.health_report(connection)


@router.get("/api/admin/ops/actions")
async def list_actions(services: ServicesDep, page: Annotated[Page, Depends()]) -> dict[str, Any]:
    """What admins did, newest first."""
    after = page.after(big_integer)
    async with services.database.read() as connection:
        rows = await ops.list_actions(connection, after[0] if after else None, page.limit + 1)
    return page.answer(rows, _show_action, lambda row: (row.action_id,))


def _show_action(row: Row[Any]) -> dict[str, Any]:
    return {
        "at": time(row.at),
        "actor": row.actor,
        "action": row.action,
        "target": row.target,
        "reason": row.reason,
        "before": row.before,
        "after": row.after,
    }


@router.post("/api/admin/ops/cross-check", status_code=202)
async def cross_check(request: Request, services: ServicesDep, body: OptionalReason = None) -> dict[str, Any]:
    """Make rows and workflows agree now, within the guards of a scheduled pass."""
    await services.require_worker()
    operation_id = new_id()
    workflow_id = services.names.cross_check(operation_id)
    await services.start(CrossCheckWorkflow.run, [False], workflow_id)
    reason = body.reason if body else None
    await services.database.transact(
        partial(
            ops.record_action,
            actor=actor(request),
            action="cross_check",
            target=f"cross-check:{operation_id}",
            reason=reason,
            before=None,
            after=None,
        )
    )
    return {"operationId": operation_id, "workflow": services.workflow_link(workflow_id)}


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is up."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(services: ServicesDep, accept: Annotated[str, Header(include_in_schema=False)] = "*/*") -> Response:
    """The database is reachable and migrated, and Temporal is reachable.

    Prometheus, which takes text only, gets a page without samples: its `up` is then the readiness.
    """
    try:
        async with asyncio.timeout(_READY_SECONDS), services.database.read() as connection:
            migrated = await is_migrated(connection)
    except DATABASE_ERRORS as error:
        raise unavailable("not-ready", "The database cannot be reached.") from error
    if not migrated:
        raise unavailable("not-ready", "The database is not migrated to this version.")
    try:
        async with asyncio.timeout(_READY_SECONDS):
            healthy = await services.temporal.service_client.check_health()
    except (TimeoutError, RPCError, RuntimeError) as error:
        raise unavailable("not-ready", "Temporal cannot be reached.") from error
    if not healthy:
        raise unavailable("not-ready", "Temporal is not healthy.")
    if "text/plain" in accept and "application/json" not in accept:
        return PlainTextResponse("# ready\n")
    return JSONResponse({"status": "ok"})
