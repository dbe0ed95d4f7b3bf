"""Deliveries that need a person: why, and letting them wait for couriers again."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api import assignment, dispatch
from api.console.pages import form_body, page, said
from api.console.paging import OfZone, ShortPage
from api.models import NeedsReason
from api.services import ServicesDep

router = APIRouter()


@router.get("/console/attention")
async def list_attention(
    request: Request, services: ServicesDep, short_page: Annotated[ShortPage, Depends()], zone: OfZone = ""
) -> Response:
    """Those of every zone, or of one, newest first."""
    found = await dispatch.list_attention(services, short_page, zone.strip() or None)
    items = [{**item, "flagged": _flagged(item)} for item in found["items"]]
    return page(request, "attention.html", items=items, nextCursor=found["nextCursor"], zone=zone.strip())


def _flagged(delivery: dict[str, Any]) -> dict[str, str] | None:
    """The step of its timeline that says since when, and why."""
    return next((step for step in reversed(delivery["timeline"]) if step["what"] == "needs_attention"), None)


@router.post("/console/attention/{delivery_id}/requeue")
async def requeue(delivery_id: str, request: Request, services: ServicesDep) -> Response:
    """Let it wait for couriers again, as if nobody had been asked in vain."""
    body = await form_body(request, NeedsReason)
    done = await assignment.requeue_delivery(delivery_id, body, request, services)
    return said(request, f"Delivery {delivery_id} is {done['status']} again.", "/console/attention")
