"""Bulk operations on failed messages: counted first, then begun, paused and resumed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api import outbox_replay
from api.console.pages import form_body, form_fields, go, page, said, validated
from api.console.paging import ShortPage
from api.models import NeedsReason, Reasoned
from api.problems import conflict
from api.services import ServicesDep
from db import ops
from domain.outbox import ReplayStatus

router = APIRouter()

_FILTER = ("eventType", "errorClass", "sink", "fingerprint")


@router.get("/console/replays")
async def list_operations(
    request: Request, services: ServicesDep, short_page: Annotated[ShortPage, Depends()]
) -> Response:
    """Bulk operations, newest first."""
    return page(request, "replays.html", **await outbox_replay.list_operations(services, short_page))


@router.post("/console/replays")
async def count(request: Request, services: ServicesDep) -> Response:
    """Say how many messages an operation would be about, and change nothing."""
    fields = await form_fields(request)
    chosen = {name: fields.pop(name) for name in _FILTER if name in fields}
    body = validated(outbox_replay.Replays, {**fields, "filter": chosen, "dryRun": True})
    return await _begin(body, request, services)


@router.get("/console/replays/{operation_id}")
async def show_operation(operation_id: str, request: Request, services: ServicesDep) -> Response:
    """How far it is."""
    found = await outbox_replay.get(operation_id, services)
    async with services.database.read() as connection:
        workers = await ops.workers_alive(connection)
    return page(request, "replay.html", operation=found, can_begin=_can_begin(found), workers=workers)


@router.post("/console/replays/{operation_id}/begin")
async def begin(operation_id: str, request: Request, services: ServicesDep) -> Response:
    """Do it to the messages that the same filter chooses now: from then on they stay the same ones."""
    reason = (await form_body(request, NeedsReason)).reason
    counted = await outbox_replay.get(operation_id, services)
    if not _can_begin(counted):
        raise conflict("nothing-to-do", "Only what was counted, and found something, can be begun.")
    chosen = {name: value for name, value in counted["filter"].items() if value is not None}
    wish = {"filter": chosen, "action": counted["action"], "dryRun": False, "reason": reason}
    return await _begin(validated(outbox_replay.Replays, wish), request, services)


@router.post("/console/replays/{operation_id}/pause")
async def pause(operation_id: str, request: Request, services: ServicesDep) -> Response:
    """Decide no more of its messages."""
    await outbox_replay.pause(operation_id, request, services, await form_body(request, Reasoned))
    return said(request, "The operation is paused.", f"/console/replays/{operation_id}")


@router.post("/console/replays/{operation_id}/resume")
async def resume(operation_id: str, request: Request, services: ServicesDep) -> Response:
    """Go on."""
    await outbox_replay.resume(operation_id, request, services, await form_body(request, Reasoned))
    return said(request, "The operation goes on.", f"/console/replays/{operation_id}")


async def _begin(body: outbox_replay.Replays, request: Request, services: ServicesDep) -> Response:
    begun = await outbox_replay.begin(body, request, services)
    return go(request, f"/console/replays/{begun['operationId']}")


def _can_begin(operation: dict[str, Any]) -> bool:
    return bool(operation["dryRun"] and operation["status"] == ReplayStatus.DONE and operation["count"])
