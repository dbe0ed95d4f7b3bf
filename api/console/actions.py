"""The audit: what admins did, when and why."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api import ops
from api.console.pages import page
from api.console.paging import ShortPage
from api.services import ServicesDep

router = APIRouter()

_PAGES = {
    "zone": "/console/assignment/",
    "reconciliation": "/console/inventory/reconcile/",
    "replays": "/console/replays/",
    "snapshot": "/console/snapshots/",
}
"""Where a target is shown, by its kind."""


@router.get("/console/actions")
async def list_actions(
    request: Request, services: ServicesDep, short_page: Annotated[ShortPage, Depends()]
) -> Response:
    """Every admin's action, newest first."""
    listed = await ops.list_actions(services, short_page)
    items = [{**item, "page": _page_of(item)} for item in listed["items"]]
    return page(request, "actions.html", items=items, nextCursor=listed["nextCursor"])


def _page_of(action: dict[str, Any]) -> str | None:
    kind, _, name = action["target"].partition(":")
    return _PAGES[kind] + quote(name, safe="") if kind in _PAGES else None
