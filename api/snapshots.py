"""Snapshots: everything that explains an incident, captured at one moment and downloadable as one JSON."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Row

from api.models import OptionalReason, Page, actor, aware_time, time
from api.problems import Problem, not_found
from api.services import Services, ServicesDep
from db import snapshots
from domain.ids import new_id
from domain.ops import SnapshotStatus
from workflows.snapshots import SnapshotWorkflow

router = APIRouter(prefix="/api/admin/ops/snapshots")


@router.post("", status_code=202)
async def take_snapshot(request: Request, services: ServicesDep, body: OptionalReason = None) -> dict[str, Any]:
    """Capture the house as it is now."""
    await services.require_worker()
    snapshot_id = new_id()
    begin = partial(
        snapshots.begin_snapshot,
        snapshot_id=snapshot_id,
        actor=actor(request),
        reason=body.reason if body else None,
    )
    await services.database.transact(begin)
    workflow_id = services.names.snapshot(snapshot_id)
    try:
        await services.start(SnapshotWorkflow.run, [snapshot_id], workflow_id)
    except Problem:
        await services.database.transact(partial(snapshots.fail_snapshot, snapshot_id=snapshot_id))
        raise
    return {"snapshotId": snapshot_id, "workflow": services.workflow_link(workflow_id)}


@router.get("")
async def list_snapshots(services: ServicesDep, page: Annotated[Page, Depends()]) -> dict[str, Any]:
    """Snapshots without their contents, newest first."""
    after = page.after(aware_time, str)
    async with services.database.read() as connection:
        rows = await snapshots.list_snapshots(connection, (after[0], after[1]) if after else None, page.limit + 1)
    return page.answer(rows, _show_snapshot, lambda row: (row.created_at, row.snapshot_id))


@router.get("/{snapshot_id}")
async def get_snapshot(snapshot_id: str, services: ServicesDep, response: Response) -> dict[str, Any]:
    """A snapshot with what it captured; a browser saves it as a file."""
    found = await read_snapshot(snapshot_id, services)
    if found["status"] == SnapshotStatus.DONE:
        response.headers["Content-Disposition"] = f'attachment; filename="waybill-snapshot-{snapshot_id}.json"'
    return found


async def read_snapshot(snapshot_id: str, services: Services) -> dict[str, Any]:
    """A snapshot with what it captured, once it has. Raises the problem of one that does not exist."""
    async with services.database.read() as connection:
        row = await snapshots.get_snapshot(connection, snapshot_id)
    if row is None:
        raise not_found("snapshot")
    workflow = services.workflow_link(services.names.snapshot(snapshot_id))
    return {**_show_snapshot(row), "workflow": workflow, **(row.content or {})}


def _show_snapshot(row: Row[Any]) -> dict[str, Any]:
    return {
        "snapshotId": row.snapshot_id,
        "createdAt": time(row.created_at),
        "reason": row.reason,
        "status": row.status,
    }
