"""Orders, as clients start, pay, extend, cancel and read them."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Annotated, Any, TypedDict

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy import Row
from temporalio.client import (
    WithStartWorkflowOperation,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import (
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from api.inventory import refuse_unknown_products
from api.models import (
    Body,
    Email,
    HoldSeconds,
    LongText,
    Name,
    OptionalReason,
    Page,
    Reasoned,
    Text,
    Units,
    actor,
    admin,
    aware_time,
    time,
    timeline,
)
from api.order_audit import audited
from api.problems import Problem, conflict, invalid, not_found, unavailable
from api.services import Services, ServicesDep
from db import order as orders
from domain.ids import STATUS_ATTRIBUTE, ZONE_ATTRIBUTE
from domain.ids import order_id as derive_order_id
from domain.notifications import mail_address
from domain.order import Line, NewOrder, OrderCommand, OrderState, OrderStatus, Place, Refusal, possible, refusal
from workflows.order import OrderWorkflow

router = APIRouter(prefix="/api/orders")

DECISION_SECONDS = 15.0
"""A POST answers within this time, decided or not."""
_STATUS = SearchAttributeKey.for_keyword(STATUS_ATTRIBUTE)
_ZONE = SearchAttributeKey.for_keyword(ZONE_ATTRIBUTE)

_REFUSALS = {
    Refusal.HOLD_EXPIRED: "The hold has expired; its units are free again.",
    Refusal.ORDER_CANCELLED: "The order was cancelled.",
    Refusal.ORDER_REJECTED: "The order was rejected for lack of stock.",
    Refusal.ORDER_CONFIRMED: "The order is confirmed; its hold is over.",
    Refusal.ALREADY_PICKED_UP: "The delivery was picked up already.",
}


class LineBody(Body):
    """So many of a product."""

    sku: Text
    quantity: Units


class PlaceBody(Body):
    """A point, in degrees."""

    lat: Annotated[float, Field(ge=-90, le=90)]
    lng: Annotated[float, Field(ge=-180, le=180)]


class DropoffBody(PlaceBody):
    """Where the order goes."""

    address: LongText | None = None


class StartOrder(Body):
    """The body of `POST /api/orders`."""

    customer_id: Text
    zone: Name
    lines: Annotated[list[LineBody], Field(min_length=1, max_length=200)]
    pickup: PlaceBody | None = None
    dropoff: DropoffBody
    email: Email | None = None
    hold_seconds: HoldSeconds | None = None

    def order(self, order_id: str, default_hold_seconds: int) -> NewOrder:
        """The order that is asked for."""
        return NewOrder(
            order_id=order_id,
            # Of what was said, defaults left out: a default that changes between two tries is not another body.
            request_hash=hashlib.sha256(self.model_dump_json(exclude_defaults=True).encode()).hexdigest(),
            customer_id=self.customer_id,
            zone=self.zone,
            lines=[Line(line.sku, line.quantity) for line in self.lines],
            pickup=Place(self.pickup.lat, self.pickup.lng) if self.pickup else None,
            dropoff=Place(self.dropoff.lat, self.dropoff.lng),
            dropoff_address=self.dropoff.address,
            email=self.email,
            hold_seconds=self.hold_seconds or default_hold_seconds,
        )


class ExtendOrder(Reasoned):
    """The body of `POST /api/orders/{orderId}/extend`; the reason is an admin's."""

    hold_seconds: HoldSeconds


async def _idempotency_key(idempotency_key: Annotated[str | None, Header()] = None) -> str:
    if not idempotency_key:
        raise Problem(400, "idempotency-key-missing", "The header Idempotency-Key is missing.")
    if len(idempotency_key) > 255:
        raise Problem(400, "idempotency-key-too-long", "The header Idempotency-Key is longer than 255 characters.")
    return idempotency_key


@router.post("")
async def start_order(
    body: StartOrder, request: Request, services: ServicesDep, key: Annotated[str, Depends(_idempotency_key)]
) -> JSONResponse:
    """Reserve everything or nothing. The same key asks for the same outcome again."""
    order = body.order(derive_order_id(actor(request), key), services.hold_seconds)
    row = await _read(services, order.order_id)
    made = row is None
    if row is None:
        _refuse_unmailable(body.email)
        await refuse_unknown_products(services, {line.sku for line in order.lines})
        decide_by = _decide_by()
        await services.require_worker()
        await services.require_temporal()
        async with audited(services, request, "start", order.order_id):
            await _reserve(services, order, decide_by)
        row = await _read(services, order.order_id)
        if row is None:
            raise _pending(order.order_id)
    if row.request_hash != order.request_hash:
        raise _key_reused()
    if row.status == OrderStatus.REJECTED:
        raise conflict("insufficient-stock", "There is not enough stock; nothing was reserved.", lines=row.shortages)
    return JSONResponse(
        show_order(services, row), 201 if made else 200, headers={"Location": f"/api/orders/{row.order_id}"}
    )


def _refuse_unmailable(email: str | None) -> None:
    """Not a part of the body's type: what can be mailed to may change, and an order that was taken stays taken."""
    try:
        if email is not None:
            mail_address(email)
    except ValueError as error:
        raise RequestValidationError([{"type": "value_error", "loc": ("body", "email"), "msg": str(error)}]) from error


def _decide_by() -> float:
    """When a call that begins now has to be answered, by the event loop's clock: all its steps share that time."""
    return asyncio.get_running_loop().time() + DECISION_SECONDS


class _StartOptions(TypedDict):
    id: str
    task_queue: str
    id_conflict_policy: WorkflowIDConflictPolicy
    id_reuse_policy: WorkflowIDReusePolicy
    static_summary: str
    search_attributes: TypedSearchAttributes


def _start_options(services: Services, order: NewOrder) -> _StartOptions:
    """How an order's workflow is started, or the running one joined.

    One that failed or was terminated is started again: its first step loads the row, where there is one. One that has
    ended well is not: the row knows how.
    """
    return {
        "id": services.names.order(order.order_id),
        "task_queue": services.names.main_queue,
        "id_conflict_policy": WorkflowIDConflictPolicy.USE_EXISTING,
        "id_reuse_policy": WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
        "static_summary": order.summary,
        "search_attributes": TypedSearchAttributes(
            [SearchAttributePair(_STATUS, OrderStatus.RESERVED), SearchAttributePair(_ZONE, order.zone)]
        ),
    }


async def _reserve(services: Services, order: NewOrder, decide_by: float) -> None:
    """Have the order's workflow decide, and wait for that."""
    start = WithStartWorkflowOperation(OrderWorkflow.run, order, **_start_options(services, order))
    # Without somebody who takes its outcome, a start that failed is logged as an error of nobody's.
    asyncio.gather(start.workflow_handle(), return_exceptions=True)
    try:
        async with asyncio.timeout_at(decide_by):
            # One id for all copies of a request: Temporal lets only ten different updates wait at a time.
            await services.temporal.execute_update_with_start_workflow(
                OrderWorkflow.reserved,
                order.request_hash,
                id=f"reserved-{order.request_hash}",
                start_workflow_operation=start,
            )
    except WorkflowUpdateFailedError as error:
        if isinstance(error.cause, ApplicationError) and error.cause.type == "idempotency-key-reused":
            raise _key_reused() from error
        raise _pending(order.order_id) from error
    except WorkflowAlreadyStartedError:
        return  # it ran and closed: the row knows how
    except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError, RPCError) as error:
        raise _pending(order.order_id) from error


@router.post("/{order_id}/confirm")
async def confirm_order(
    order_id: str, request: Request, services: ServicesDep, body: OptionalReason = None
) -> dict[str, Any]:
    """Take the units out of stock and have the order delivered."""
    return await _ask(services, request, order_id, OrderCommand.CONFIRM, body)


@router.post("/{order_id}/extend")
async def extend_order(order_id: str, body: ExtendOrder, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Hold on for that many seconds from now."""
    return await _ask(services, request, order_id, OrderCommand.EXTEND, body)


@router.post("/{order_id}/cancel")
async def cancel_order(
    order_id: str, request: Request, services: ServicesDep, body: OptionalReason = None
) -> dict[str, Any]:
    """Give the units back."""
    return await _ask(services, request, order_id, OrderCommand.CANCEL, body)


async def _ask(
    services: Services, request: Request, order_id: str, command: OrderCommand, body: Reasoned | None
) -> dict[str, Any]:
    """Carry out a command; an admin's is audited unless it is refused outright."""
    hold_seconds = body.hold_seconds if isinstance(body, ExtendOrder) else None
    row = await _read(services, order_id) if admin(request) is not None else None
    if row is None or refusal(command, OrderStatus(row.status)):
        return await _command(services, order_id, command, hold_seconds)
    reason, changes = body.reason if body else None, possible(command, OrderStatus(row.status))
    async with audited(services, request, command, order_id, reason, row=row, changes=changes):
        return await _command(services, order_id, command, hold_seconds)


async def _command(
    services: Services, order_id: str, command: OrderCommand, hold_seconds: int | None = None
) -> dict[str, Any]:
    """Carry out a command that changes the order; one that was carried out before only shows it."""
    row = await _read(services, order_id)
    if row is None:
        raise not_found("order")
    stage = OrderStatus(row.status)
    if possible(command, stage):
        decide_by = _decide_by()
        await services.require_worker()
        await services.require_temporal()
        state = await _update(services, row, command, hold_seconds, decide_by)
        if state is None and await _revive(services, order_id, decide_by):
            state = await _update(services, row, command, hold_seconds, decide_by)
        row = await _read(services, order_id) or row
        if state is None:  # its workflow is closed, so the row has the answer
            stage = OrderStatus(row.status)
            if possible(command, stage):
                raise _pending(order_id)
        else:
            stage = state.stage
            if state.refusal is not None:
                raise _refused(state.refusal)
    if slug := refusal(command, stage):
        raise _refused(slug)
    return show_order(services, row)


async def _revive(services: Services, order_id: str, decide_by: float) -> bool:
    """Where the row of an order is open and its workflow is gone, start that again from the row."""
    async with services.database.read() as connection:
        state = await orders.load_state(connection, order_id)
        order = await orders.get_new_order(connection, order_id)
    if not state.stage.open:
        return False
    try:
        async with asyncio.timeout_at(decide_by):
            await services.temporal.start_workflow(OrderWorkflow.run, order, **_start_options(services, order))
    except WorkflowAlreadyStartedError:
        return False  # it has ended well after all
    except (TimeoutError, RPCError) as error:
        raise _pending(order_id) from error
    return True


async def _update(
    services: Services, row: Row[Any], command: OrderCommand, hold_seconds: int | None, decide_by: float
) -> OrderState | None:
    """Send the command to the order's workflow; None when that has closed meanwhile."""
    handle = services.temporal.get_workflow_handle(services.names.order(row.order_id))
    # A command can succeed only once from where the order stands, so its copies may share one update.
    update_id = f"{command}-{row.status}-{row.delivery_status}"
    try:
        async with asyncio.timeout_at(decide_by):
            if command is OrderCommand.CONFIRM:
                return await handle.execute_update(OrderWorkflow.confirm, id=update_id)
            if command is OrderCommand.CANCEL:
                return await handle.execute_update(OrderWorkflow.cancel, id=update_id)
            assert hold_seconds is not None
            return await handle.execute_update(OrderWorkflow.extend, hold_seconds)
    except WorkflowUpdateFailedError as error:
        if isinstance(error.cause, ApplicationError) and error.cause.type in list(Refusal):
            raise _refused(Refusal(error.cause.type)) from error
        return None
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise _pending(row.order_id) from error
    except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
        raise _pending(row.order_id) from error


def _refused(slug: Refusal) -> Problem:
    return conflict(slug, _REFUSALS[slug])


def _key_reused() -> Problem:
    return invalid("idempotency-key-reused", "This Idempotency-Key was used with another body.")


def _pending(order_id: str) -> Problem:
    return unavailable(
        "order-pending",
        "The order is not decided yet.",
        "Ask again with the same key or at the order's address: what was started is not lost.",
        orderId=order_id,
    )


# --- reads


@router.get("/{order_id}")
async def get_order(order_id: str, services: ServicesDep) -> dict[str, Any]:
    """One order."""
    row = await _read(services, order_id)
    if row is None:
        raise not_found("order")
    return show_order(services, row)


@router.get("")
async def list_orders(
    services: ServicesDep, page: Annotated[Page, Depends()], status: Annotated[OrderStatus | None, Query()] = None
) -> dict[str, Any]:
    """Orders, newest first."""
    after = page.after(aware_time, str)
    async with services.database.read() as connection:
        rows = await orders.list_orders(connection, status, (after[0], after[1]) if after else None, page.limit + 1)
    return page.answer(rows, lambda row: show_order(services, row), lambda row: (row.created_at, row.order_id))


async def _read(services: Services, order_id: str) -> Row[Any] | None:
    async with services.database.read() as connection:
        return await orders.get_order(connection, order_id)


def show_order(services: Services, row: Row[Any]) -> dict[str, Any]:
    """An order as clients see it."""
    delivery = None
    if row.delivery_id is not None:
        delivery = {"status": row.delivery_status, "courierId": row.courier_id}
    return {
        "orderId": row.order_id,
        "status": row.status,
        "customerId": row.customer_id,
        "zone": row.zone,
        "lines": row.lines,
        "expiresAt": time(row.expires_at),
        "deliveryId": row.delivery_id,
        "delivery": delivery,
        "timeline": timeline(row.timeline),
        "workflow": services.workflow_link(services.names.order(row.order_id)),
    }
