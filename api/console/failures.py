"""Failing messages: what failed and why, and what to do about it."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from api import outbox
from api.console.pages import choice, form_body, form_fields, page, said, validated
from api.console.paging import ShortPage
from api.models import NeedsReason, Reasoned
from api.problems import invalid
from api.services import ServicesDep
from domain.outbox import PUBLIC_TYPES, ErrorClass, EventType, MessageStatus, ReplayAction

router = APIRouter()


class Filters:
    """What the list is narrowed to; empty: everything."""

    def __init__(
        self,
        status: str = "",
        event_type: Annotated[str, Query(alias="eventType")] = "",
        error_class: Annotated[str, Query(alias="errorClass")] = "",
        sink: Annotated[str, Query(max_length=64)] = "",
        fingerprint: Annotated[str, Query(max_length=255)] = "",
    ) -> None:
        self.status = choice(MessageStatus, status) or MessageStatus.FAILED
        self.event_type = choice(EventType, event_type)
        self.error_class = choice(ErrorClass, error_class)
        self.sink = sink or None
        self.fingerprint = fingerprint or None

    @property
    def query(self) -> str:
        """The filters as they stand in an address."""
        given = {
            "status": self.status,
            "eventType": self.event_type,
            "errorClass": self.error_class,
            "sink": self.sink,
            "fingerprint": self.fingerprint,
        }
        return urlencode({name: value for name, value in given.items() if value})


@router.get("/console/failures")
async def list_failures(
    request: Request,
    services: ServicesDep,
    short_page: Annotated[ShortPage, Depends()],
    filters: Annotated[Filters, Depends()],
) -> Response:
    """The messages that failed for reasons of their own."""
    found = await outbox.list_failures(
        services,
        short_page,
        filters.status,
        filters.event_type,
        filters.error_class,
        filters.sink,
        filters.fingerprint,
    )
    return page(
        request,
        "failures.html",
        **found,
        filters=filters,
        statuses=[status for status in MessageStatus if status is not MessageStatus.PENDING],
        event_types=sorted(PUBLIC_TYPES),
        error_classes=list(ErrorClass),
        replay_actions=list(ReplayAction),
    )


@router.get("/console/failures/groups")
async def list_groups(request: Request, services: ServicesDep, short_page: Annotated[ShortPage, Depends()]) -> Response:
    """Messages that failed in the same way, together."""
    return page(request, "groups.html", **await outbox.list_groups(services, short_page))


@router.get("/console/events/{event_id}")
async def show_event(event_id: str, request: Request, services: ServicesDep) -> Response:
    """An event, each of its messages, and what can be done about those that fail."""
    event = await outbox.get_event(event_id, services)
    links: dict[str, Any] = {
        message["messageId"]: services.workflow_link(services.names.failure(message["messageId"]))
        for message in event["messages"]
    }
    return page(request, "event.html", event=event, links=links)


@router.post("/console/failures/{message}/replay")
async def replay(message: str, request: Request, services: ServicesDep) -> Response:
    """Send it again."""
    done = await outbox.replay(message, request, services, await form_body(request, Reasoned))
    return said(request, f"Message {message} will be sent again: it is {done['status']}.", "/console/failures")


@router.post("/console/failures/{message}/fix")
async def fix(message: str, request: Request, services: ServicesDep) -> Response:
    """Send it with another payload."""
    fields: dict[str, Any] = await form_fields(request)
    try:
        fields["payload"] = json.loads(fields.get("payload", ""))
    except (ValueError, RecursionError) as error:
        raise invalid("malformed-json", "The payload is not valid JSON.", error=str(error)) from error
    done = await outbox.fix(message, validated(outbox.Fix, fields), request, services)
    kept = "under its own id" if done["fixes"] is None else f"as event {done['eventId']}"
    return said(request, f"Message {message} will be sent with the new payload, {kept}.", "/console/failures")


@router.post("/console/failures/{message}/ignore")
async def ignore(message: str, request: Request, services: ServicesDep) -> Response:
    """Give it up."""
    done = await outbox.ignore(message, await form_body(request, NeedsReason), request, services)
    return said(request, f"Message {message} is given up: it is {done['status']}.", "/console/failures")
