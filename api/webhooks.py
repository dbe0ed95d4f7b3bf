"""Webhooks: who receives which events, and whether they can."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, Field, StringConstraints
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from api.models import LongText, Name, OptionalReason, Page, Reasoned, Text, actor, integer, time
from api.problems import conflict, invalid, not_found
from api.services import Services, ServicesDep
from db.outbox import endpoints, lanes
from db.outbox.endpoints import BeingDeleted
from domain.outbox import PUBLIC_TYPES, RESERVED_NAMES, new_webhook_secret
from sinks.webhook import url_problem

router = APIRouter(prefix="/api/admin")


def _printable(url: str) -> str:
    if not url.isprintable() or " " in url:
        raise ValueError("a URL holds no spaces and no control characters")
    return url


class PutWebhook(Reasoned):
    """The body of `PUT /api/admin/webhooks/{name}`."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=2000), AfterValidator(_printable)]
    event_types: list[Text] | None = None
    unordered_event_types: list[Text] = Field(default_factory=list)
    enabled: bool = True


@router.put("/webhooks/{name}")
async def put_webhook(name: Name, body: PutWebhook, request: Request, services: ServicesDep) -> JSONResponse:
    """Make or change a webhook; the secret is told only when it is made.

    Which events need no order holds for later ones at once, and for those that wait when this answers. Should the call
    break off: the same one again goes on with it.
    """
    if problem := url_problem(body.url, allow_private=services.webhook_allow_private):
        raise invalid("invalid-webhook-url", problem)
    if unknown := sorted({*(body.event_types or ()), *body.unordered_event_types} - PUBLIC_TYPES):
        raise invalid("unknown-event-type", "There is no such event type.", eventTypes=unknown)
    if name in RESERVED_NAMES:
        raise invalid("reserved-name", f"The name {name!r} is that of a sink of its own.")
    secret = new_webhook_secret()
    wish = endpoints.WebhookWish(body.url, body.event_types, body.unordered_event_types, body.enabled)
    created = await _change(
        services,
        lambda connection: endpoints.put_webhook(
            connection, name, wish, secret, actor=actor(request), reason=body.reason
        ),
    )
    move = await services.database.transact(partial(lanes.begin_move, name=name))
    while move is not None:
        move = await services.database.transact(partial(lanes.move_some, move=move))
    shown = await get_webhook(name, services)
    return JSONResponse({**shown, "secret": secret} if created else shown, 201 if created else 200)


@router.get("/webhooks/{name}")
async def get_webhook(name: str, services: ServicesDep) -> dict[str, Any]:
    """One webhook, without its secret."""
    async with services.database.read() as connection:
        row = await endpoints.get_webhook(connection, name)
    if row is None:
        raise not_found("webhook")
    return _show_webhook(row)


@router.get("/webhooks")
async def list_webhooks(services: ServicesDep, page: Annotated[Page, Depends()]) -> dict[str, Any]:
    """Webhooks, newest first."""
    after = page.after(integer)
    async with services.database.read() as connection:
        rows = await endpoints.list_webhooks(connection, after[0] if after else None, page.limit + 1)
    return page.answer(rows, _show_webhook, lambda row: (row.endpoint_id,))


@router.delete("/webhooks/{name}", status_code=204)
async def delete_webhook(
    name: str, request: Request, services: ServicesDep, reason: Annotated[LongText | None, Query()] = None
) -> Response:
    """End a webhook; what it had not received is dropped. Again, should the first call break off: it goes on."""
    admin = actor(request)
    begin = partial(endpoints.begin_deletion, name=name, actor=admin, reason=reason)
    endpoint_id = await services.database.transact(begin)
    if endpoint_id is None:
        raise not_found("webhook")
    dropped = 0
    while more := await services.database.transact(partial(endpoints.drop_messages, endpoint_id=endpoint_id)):
        dropped += more
    end = partial(endpoints.end_deletion, endpoint_id=endpoint_id, dropped=dropped, actor=admin, reason=reason)
    await services.database.transact(end)
    return Response(status_code=204)


@router.post("/webhooks/{name}/rotate-secret")
async def rotate_secret(
    name: str, request: Request, services: ServicesDep, body: OptionalReason = None
) -> dict[str, Any]:
    """Give the webhook a new secret; for a day its messages carry a signature by the old one too."""
    secret = new_webhook_secret()
    reason = body.reason if body else None
    rotated = await _change(
        services,
        lambda connection: endpoints.rotate_secret(connection, name, secret, actor=actor(request), reason=reason),
    )
    if not rotated:
        raise not_found("webhook")
    return {**await get_webhook(name, services), "secret": secret}


@router.post("/webhooks/{name}/enable")
async def enable_webhook(
    name: str, request: Request, services: ServicesDep, body: OptionalReason = None
) -> dict[str, Any]:
    """Send to the webhook again, at once."""
    reason = body.reason if body else None
    enabled = await _change(
        services, lambda connection: endpoints.enable_webhook(connection, name, actor=actor(request), reason=reason)
    )
    if not enabled:
        raise not_found("webhook")
    return await get_webhook(name, services)


async def _change(services: Services, change: Callable[[AsyncConnection], Awaitable[bool]]) -> bool:
    try:
        return await services.database.transact(change)
    except BeingDeleted as error:
        title = "The webhook is being deleted; if that takes long, DELETE it again."
        raise conflict("webhook-being-deleted", title) from error


def _show_webhook(row: Row[Any]) -> dict[str, Any]:
    return {
        "name": row.name,
        "url": row.url,
        "eventTypes": row.event_types,
        "unorderedEventTypes": row.unordered_types,
        "enabled": row.enabled and row.disabled_reason is None,
        "disabledReason": row.disabled_reason,
        "breaker": "open" if row.open else "closed",
        "failingSince": time(row.failing_since),
        "lastError": row.last_error,
        "createdAt": time(row.created_at),
    }
