"""Bulk operations on failed messages."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from sqlalchemy import Row

from api.models import Body, NeedsReason, OptionalReason, Page, Text, actor, aware_time, time
from api.problems import Problem, conflict, not_found
from api.services import Services, ServicesDep
from db.outbox import replays
from db.outbox.replays import OperationMissing, OperationOver
from domain.ids import LOOK_AGAIN_SIGNAL, new_id
from domain.outbox import ErrorClass, EventType, ReplayAction, ReplayStatus, message_id
from workflows.outbox_replay import OutboxReplayWorkflow

router = APIRouter(prefix="/api/admin/ops/outbox/replays")


class Filter(Body):
    """Which of the failed messages; what is left out may be anything."""

    event_type: Annotated[EventType | None, Field(strict=False)] = None
    error_class: Annotated[ErrorClass | None, Field(strict=False)] = None
    sink: Text | None = None
    fingerprint: Text | None = None


class Replays(NeedsReason):
    """The body of `POST …/outbox/replays`."""

    filter: Filter
    action: Annotated[ReplayAction, Field(strict=False)]
    dry_run: bool


@router.post("", status_code=202)
async def begin(body: Replays, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Replay or ignore every message that is FAILED now and chosen by the filter; a dry run only counts them."""
    if not body.dry_run:
        await services.require_worker()
    operation_id = new_id()
    filters = {name: str(value) if value is not None else None for name, value in body.filter}
    status = await services.database.transact(
        lambda connection: replays.begin(
            connection,
            operation_id,
            body.action,
            filters,
            dry_run=body.dry_run,
            actor=actor(request),
            reason=body.reason,
        )
    )
    if status is ReplayStatus.RUNNING:
        try:
            await _start(services, operation_id)
        except Problem:
            await services.database.transact(partial(replays.fail, operation_id=operation_id))
            raise
    return await get(operation_id, services)


async def _start(services: Services, operation_id: str) -> None:
    """Start the operation's workflow, or wake the one that is there."""
    workflow_id = services.names.outbox_replay(operation_id)
    run = OutboxReplayWorkflow.run
    summary = f"bulk operation {operation_id}"
    await services.start(run, [operation_id], workflow_id, summary=summary, signal=LOOK_AGAIN_SIGNAL)


@router.get("")
async def list_operations(services: ServicesDep, page: Annotated[Page, Depends()]) -> dict[str, Any]:
    """Bulk operations, newest first."""
    after = page.after(aware_time, str)
    async with services.database.read() as connection:
        rows = await replays.list_operations(connection, (after[0], after[1]) if after else None, page.limit + 1)
    return page.answer(rows, partial(_show, services), lambda row: (row.created_at, row.operation_id))


@router.get("/{operation_id}")
async def get(operation_id: str, services: ServicesDep) -> dict[str, Any]:
    """How far an operation is, and a few of its messages."""
    async with services.database.read() as connection:
        found = await replays.get(connection, operation_id)
    if found is None:
        raise not_found("operation")
    row, sample = found
    return {**_show(services, row), "sample": [_show_item(item) for item in sample]}


def _show(services: Services, row: Row[Any]) -> dict[str, Any]:
    return {
        "operationId": row.operation_id,
        "action": row.action,
        "filter": {_FILTER_NAMES[name]: value for name, value in row.filter.items()},
        "dryRun": row.dry_run,
        "status": row.status,
        "count": row.total,
        "done": row.done,
        "skipped": row.skipped,
        "createdAt": time(row.created_at),
        "finishedAt": time(row.finished_at),
        "reason": row.reason,
        "actor": row.actor,
        "workflow": services.workflow_link(services.names.outbox_replay(row.operation_id)),
    }


_FILTER_NAMES = {name: field.alias or name for name, field in Filter.model_fields.items()}


def _show_item(item: Row[Any]) -> dict[str, Any]:
    return {
        "messageId": message_id(item.position, item.endpoint_id),
        "eventType": item.event_type,
        "aggregateId": item.subject,
        "sink": item.sink,
        "lastError": item.last_error,
    }


@router.post("/{operation_id}/pause")
async def pause(
    operation_id: str, request: Request, services: ServicesDep, body: OptionalReason = None
) -> dict[str, Any]:
    """Decide no more of the operation's messages until it is resumed; needs no worker."""
    reason = body.reason if body else None
    try:
        await services.database.transact(
            lambda connection: replays.pause(connection, operation_id, actor=actor(request), reason=reason)
        )
    except (OperationMissing, OperationOver) as error:
        raise _cannot(error) from error
    return await get(operation_id, services)


@router.post("/{operation_id}/resume")
async def resume(
    operation_id: str, request: Request, services: ServicesDep, body: OptionalReason = None
) -> dict[str, Any]:
    """Go on where the operation was paused."""
    await services.require_worker()
    reason = body.reason if body else None
    try:
        await services.database.transact(
            lambda connection: replays.resume(connection, operation_id, actor=actor(request), reason=reason)
        )
    except (OperationMissing, OperationOver) as error:
        raise _cannot(error) from error
    resumed = await get(operation_id, services)
    if resumed["status"] == ReplayStatus.RUNNING:
        # Where Temporal does not answer, whoever asks again, or the cross-check, starts what the row says should run.
        await _start(services, operation_id)
    return resumed


def _cannot(error: OperationMissing | OperationOver) -> Exception:
    if isinstance(error, OperationMissing):
        return not_found("operation")
    return conflict(
        "operation-over", f"The operation is {error.status}; there is nothing to do.", operationStatus=error.status
    )
