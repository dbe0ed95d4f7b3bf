"""Webhooks, failing messages and what an admin does about each of them."""

from __future__ import annotations

import asyncio
import math
import time as clock
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from api.models import (
    JsonObject,
    NeedsReason,
    OptionalReason,
    Page,
    Text,
    actor,
    aware_time,
    big_integer,
    integer,
    time,
)
from api.problems import Problem, conflict, invalid, not_found
from api.services import Services, ServicesDep
from db.outbox import decisions, failures
from db.outbox.decisions import AttemptInFlight, MessageMissing, MessageSettled, PayloadRefused
from db.reports import show_failure
from domain.outbox import (
    ErrorClass,
    EventType,
    MessageStatus,
    message_id,
    parse_message_id,
)

router = APIRouter(prefix="/api/admin")
Result = TypeVar("Result")

_PATIENCE_SECONDS = 3.0
_LOOK_AGAIN_SECONDS = 0.1
"""A try that is in flight is usually over in no time: an admin's call waits for its end, and only then decides."""


# --- failing messages


@router.get("/ops/outbox/failures")
async def list_failures(
    services: ServicesDep,
    page: Annotated[Page, Depends()],
    status: Annotated[MessageStatus, Query()] = MessageStatus.FAILED,
    event_type: Annotated[EventType | None, Query(alias="eventType")] = None,
    error_class: Annotated[ErrorClass | None, Query(alias="errorClass")] = None,
    sink: Annotated[Text | None, Query()] = None,
    fingerprint: Annotated[Text | None, Query()] = None,
) -> dict[str, Any]:
    """Messages that failed for reasons of their own, and what their workflows say."""
    given = {"event_type": event_type, "error_class": error_class, "sink": sink, "fingerprint": fingerprint}
    filters = {name: str(value) for name, value in given.items() if value is not None}
    after = page.after(aware_time, big_integer, integer)
    async with services.database.read() as connection:
        rows = await failures.list_failures(
            connection, status, filters, (after[0], after[1], after[2]) if after else None, page.limit + 1
        )
    workflow_ids = {
        (row.position, row.endpoint_id): services.names.failure(message_id(row.position, row.endpoint_id))
        for row in rows[: page.limit]
    }
    statuses = await services.workflow_statuses(workflow_ids.values())

    def show(row: Row[Any]) -> dict[str, Any]:
        workflow_id = workflow_ids[row.position, row.endpoint_id]
        return _show_failure(services, row, workflow_id, statuses[workflow_id])

    return page.answer(rows, show, lambda row: (row.failed_at, row.position, row.endpoint_id))


def _show_failure(services: Services, row: Row[Any], workflow_id: str, workflow_status: str | None) -> dict[str, Any]:
    return {**show_failure(row), "workflow": {**services.workflow_link(workflow_id), "status": workflow_status}}


@router.get("/ops/outbox/failures/groups")
async def list_groups(
    services: ServicesDep,
    page: Annotated[Page, Depends()],
    status: Annotated[MessageStatus, Query()] = MessageStatus.FAILED,
) -> dict[str, Any]:
    """Messages that failed in the same way, together: the newest of them speaks for all."""
    after = page.after(aware_time, str)
    async with services.database.read() as connection:
        rows = await failures.list_groups(connection, status, (after[0], after[1]) if after else None, page.limit + 1)
    return page.answer(rows, _show_group, lambda row: (row.last_failed_at, row.fingerprint))


def _show_group(row: Row[Any]) -> dict[str, Any]:
    return {
        "fingerprint": row.fingerprint,
        "eventType": row.event_type,
        "sink": row.sink,
        "errorClass": row.error_class,
        "lastError": row.last_error,
        "count": row.total,
        "firstFailedAt": time(row.first_failed_at),
        "lastFailedAt": time(row.last_failed_at),
        "messageId": message_id(row.position, row.endpoint_id),
    }


@router.get("/ops/outbox/events/{event_id}")
async def get_event(event_id: str, services: ServicesDep) -> dict[str, Any]:
    """An event with its payload, and where each of its messages is."""
    try:
        event_uuid = str(uuid.UUID(event_id))
    except ValueError:
        raise not_found("event") from None
    async with services.database.read() as connection:
        found = await failures.get_event(connection, event_uuid)
    if found is None:
        raise not_found("event")
    event, messages, attempts = found
    return {
        "eventId": event.event_id,
        "eventType": event.event_type,
        "aggregateId": event.subject,
        "time": time(event.occurred_at),
        "payload": event.data,
        "fixes": event.fixes,
        "messages": [_show_message(event.place, message, attempts) for message in messages],
    }


def _show_message(position: int, message: Row[Any], attempts: Any) -> dict[str, Any]:
    told = [
        {
            "at": time(attempt.at),
            "outcome": attempt.outcome,
            "errorClass": attempt.error_class,
            "error": attempt.error,
        }
        for attempt in attempts
        if attempt.endpoint_id == message.endpoint_id
    ]
    delivered = message.finished_at is not None and message.status == MessageStatus.DELIVERED
    if delivered and message.fixed_by is None:
        told.append({"at": time(message.finished_at), "outcome": "delivered", "errorClass": None, "error": None})
    return {
        "messageId": message_id(position, message.endpoint_id),
        "sink": message.sink,
        "status": message.status,
        "fixedPayload": message.fixed_data,
        "fixedBy": message.fixed_by,
        "attempts": told,
    }


@router.post("/ops/outbox/failures/{message}/replay")
async def replay(message: str, request: Request, services: ServicesDep, body: OptionalReason = None) -> dict[str, Any]:
    """Send a failing message again, and what waits behind it."""
    position, endpoint_id = _message_key(message)
    reason = body.reason if body else None
    status = await _decide(
        services,
        lambda connection: decisions.replay(connection, position, endpoint_id, actor=actor(request), reason=reason),
    )
    return {"messageId": message, "status": status}


class Fix(NeedsReason):
    """The body of `POST …/outbox/failures/{messageId}/fix`."""

    payload: JsonObject


@router.post("/ops/outbox/failures/{message}/fix")
async def fix(message: str, body: Fix, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Send a failing message with another payload, in its place in the lane; under a new id if it may have arrived."""
    position, endpoint_id = _message_key(message)
    try:
        fixed = await _decide(
            services,
            lambda connection: decisions.fix(
                connection, position, endpoint_id, body.payload, actor=actor(request), reason=body.reason
            ),
        )
    except PayloadRefused as error:
        raise invalid("invalid-payload", str(error)) from error
    return {"messageId": message, "status": fixed.status, "eventId": fixed.event_id, "fixes": fixed.fixes}


@router.post("/ops/outbox/failures/{message}/ignore")
async def ignore(message: str, body: NeedsReason, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Give a failing message up; what waits behind it goes on."""
    position, endpoint_id = _message_key(message)
    status = await _decide(
        services,
        lambda connection: decisions.ignore(
            connection, position, endpoint_id, actor=actor(request), reason=body.reason
        ),
    )
    return {"messageId": message, "status": status}


def _message_key(message: str) -> tuple[int, int]:
    key = parse_message_id(message)
    if key is None:
        raise not_found("failing message")
    return key


async def _decide(services: Services, decision: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
    """Decide in one transaction, after the try that may be in flight; 409 where that does not end soon."""
    began = clock.monotonic()
    while True:
        try:
            return await services.database.transact(decision)
        except AttemptInFlight as error:
            if clock.monotonic() - began > _PATIENCE_SECONDS:
                raise _in_flight(error) from error
        except (MessageMissing, MessageSettled) as error:
            raise _cannot(error) from error
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)


def _in_flight(error: AttemptInFlight) -> Problem:
    seconds = math.ceil(error.seconds)
    return Problem(
        409,
        "attempt-in-flight",
        "The message is being sent at this moment.",
        f"Nothing was changed. Ask again when that attempt is over, in {seconds} s at the latest.",
        members={"overWithinSeconds": seconds},
        headers={"Retry-After": str(seconds)},
    )


def _cannot(error: MessageMissing | MessageSettled) -> Exception:
    if isinstance(error, MessageMissing):
        return not_found("failing message")
    return conflict(
        "message-settled", f"The message is {error.status}; there is nothing to do.", messageStatus=error.status
    )
