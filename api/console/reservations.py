"""Reservations: how many there are, which are stuck and why, and the sweep that ends those."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api import inventory
from api.console.pages import form_body, page, said
from api.console.paging import ShortPage
from api.models import NeedsReason, Reasoned
from api.services import ServicesDep
from db import ops
from domain.inventory import ReservationStatus

router = APIRouter()


@router.get("/console/reservations")
async def list_stuck(request: Request, services: ServicesDep, short_page: Annotated[ShortPage, Depends()]) -> Response:
    """Holds that outlived their deadline."""
    found = await inventory.list_stuck(services, short_page)
    async with services.database.read() as connection:
        totals = await ops.status_totals(connection, "reservations")
        workers = await ops.workers_alive(connection)
    return page(
        request,
        "reservations.html",
        **found,
        counts={status: totals.get(status, 0) for status in ReservationStatus},
        workers=workers,
        grace_seconds=services.sweep_grace_seconds,
    )


@router.post("/console/reservations/sweep")
async def sweep(request: Request, services: ServicesDep) -> Response:
    """End overdue holds now: what is expired stays so, hence the reason."""
    reason = (await form_body(request, NeedsReason)).reason
    await inventory.sweep(request, services, Reasoned(reason=reason))
    return said(request, "The sweep has begun; what it ends leaves the list.", "/console/reservations")
