"""Assignment: conflicts, zones and their knobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api import dispatch
from api.console.pages import form_body, form_fields, page, said, validated
from api.console.paging import ShortPage
from api.models import Reasoned
from api.services import ServicesDep
from db import ops
from db.assignment import zones
from db.reports import conflicts_report
from domain.assignment.states import ZoneMode

router = APIRouter()

_SHOWN = "shown."
_MOST_ZONES = 10


@router.get("/console/assignment")
async def show_assignment(
    request: Request, services: ServicesDep, short_page: Annotated[ShortPage, Depends()]
) -> Response:
    """Who lost to whom, and the zones."""
    after = short_page.after(str)
    async with services.database.read() as connection:
        conflicts = await conflicts_report(connection)
        rows = await zones.list_zones(connection, after[0] if after else "", short_page.limit + 1)
    listed = short_page.answer(rows, lambda row: dict(row._mapping), lambda row: (row.zone,))
    totals = {(each["source"], each["kind"]): each["total"] for each in conflicts["items"]}
    lately = [each for each in conflicts["zones"] if each["lastHour"]]
    return page(
        request,
        "assignment.html",
        **listed,
        sources=sorted({source for source, _ in totals}),
        kinds=sorted({kind for _, kind in totals}),
        totals=totals,
        lately=[{**each, "most": _most(each["items"])} for each in lately[:_MOST_ZONES]],
        more_zones=max(0, len(lately) - _MOST_ZONES),
    )


def _most(items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Who lost most lately, and to what."""
    return max(items, key=lambda item: (item["lastFiveMinutes"] or 0, item["lastHour"]))


@router.get("/console/assignment/{zone}")
async def show_zone(zone: str, request: Request, services: ServicesDep) -> Response:
    """A zone's knobs."""
    settings = await dispatch.get_settings(zone, services)
    async with services.database.read() as connection:
        workers = await ops.workers_alive(connection)
    workflow = services.workflow_link(services.names.dispatch(zone))
    return page(request, "zone.html", settings=settings, modes=list(ZoneMode), workflow=workflow, workers=workers)


@router.post("/console/assignment/{zone}/settings")
async def change_settings(zone: str, request: Request, services: ServicesDep) -> Response:
    """Change the knobs that are not as the form showed them (`shown.<knob>`), from the next round on."""
    await dispatch.get_settings(zone, services)
    fields = await form_fields(request)
    shown = {name: fields.pop(name) for name in list(fields) if name.startswith(_SHOWN)}
    changed = {name: value for name, value in fields.items() if value != shown.get(_SHOWN + name)}
    wish = validated(dispatch.PatchSettings, changed, texts=True)
    await dispatch.patch_settings(zone, wish, request, services)
    return said(request, f"The settings of {zone} are saved; its next round uses them.", f"/console/assignment/{zone}")


@router.post("/console/assignment/{zone}/run")
async def run_round(zone: str, request: Request, services: ServicesDep) -> Response:
    """Have the zone's dispatch run a round now."""
    await dispatch.get_settings(zone, services)
    reason = (await form_body(request, Reasoned)).reason
    await dispatch.run_round(dispatch.Run(zone=zone, reason=reason), request, services)
    return said(request, f"A round of {zone} was asked for.", f"/console/assignment/{zone}")
