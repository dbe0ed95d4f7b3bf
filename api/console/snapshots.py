"""Snapshots: taking one, and what each holds beside the one before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api import snapshots
from api.console.pages import form_body, go, page
from api.console.paging import ShortPage
from api.models import Reasoned
from api.services import ServicesDep
from db import ops
from db.snapshots import snapshot_before

router = APIRouter()

_PARTS = ("failures", "drift", "invariants", "conflicts", "health")
"""What is shown as it was written down; one that an older version took may lack some."""


@router.get("/console/snapshots")
async def list_snapshots(
    request: Request, services: ServicesDep, short_page: Annotated[ShortPage, Depends()]
) -> Response:
    """Snapshots, newest first."""
    found = await snapshots.list_snapshots(services, short_page)
    async with services.database.read() as connection:
        workers = await ops.workers_alive(connection)
    return page(request, "snapshots.html", **found, workers=workers)


@router.post("/console/snapshots")
async def take_snapshot(request: Request, services: ServicesDep) -> Response:
    """Capture the house as it is now."""
    begun = await snapshots.take_snapshot(request, services, await form_body(request, Reasoned))
    return go(request, f"/console/snapshots/{begun['snapshotId']}")


@router.get("/console/snapshots/{snapshot_id}")
async def show_snapshot(snapshot_id: str, request: Request, services: ServicesDep) -> Response:
    """What it holds; its figures beside those of the one before it."""
    found = await snapshots.read_snapshot(snapshot_id, services)
    async with services.database.read() as connection:
        before = await snapshot_before(connection, snapshot_id)
    return page(
        request,
        "snapshot.html",
        snapshot=found,
        before=before,
        figures=_figures(before.content["metrics"] if before else {}, found.get("metrics", {})),
        broken=[check for check in found.get("invariants", {}).get("checks", ()) if not check["ok"]],
        parts={name: found[name] for name in _PARTS if name in found},
    )


def _figures(before: Mapping[str, float], now: Mapping[str, float]) -> list[tuple[str, float | None, float]]:
    """Each metric's value before, if it is known, and now: those that are 0 both times are left out."""
    return [(name, before.get(name), value) for name, value in sorted(now.items()) if value or before.get(name)]


@router.get("/console/snapshots/{snapshot_id}/file")
async def save_snapshot(snapshot_id: str, services: ServicesDep, response: Response) -> dict[str, Any]:
    """All of it as one file, as the API answers it."""
    return await snapshots.get_snapshot(snapshot_id, services, response)
