"""Couriers and deliveries, and how admins assign them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from api.models import Name, NeedsReason, Page, Reasoned, Text, actor, admin, aware_time, time, timeline
from api.order import PlaceBody
from api.problems import Problem, conflict, not_found
from api.services import Services, ServicesDep
from db import order as orders
from db.assignment import commit, couriers, deliveries, requeue
from db.assignment.commit import Conflict, DeliveryMissing
from db.assignment.couriers import CapacityBelowLoad
from db.assignment.deliveries import HeldByOther, StillLocked, WrongStage
from db.assignment.requeue import NotWaiting
from db.ops import record_action
from domain.assignment.states import AssignmentSource, ConflictKind, CourierAction, DeliveryStatus

router = APIRouter()


# --- couriers


class PutCourier(PlaceBody, Reasoned):
    """The body of `PUT /api/couriers/{courierId}`; the reason is an admin's."""

    zone: Name
    capacity: Annotated[int, Field(ge=1, le=1000)]
    online: bool


@router.put("/api/couriers/{courier_id}")
async def put_courier(courier_id: Name, body: PutCourier, request: Request, services: ServicesDep) -> JSONResponse:
    """Say where a courier is, how much they can take and whether they work."""
    try:
        created = await services.database.transact(
            partial(couriers.put_courier, courier_id=courier_id, **body.model_dump(), actor=admin(request))
        )
    except CapacityBelowLoad as error:
        raise conflict(
            "courier-over-capacity", "The courier carries more than that capacity.", load=error.load
        ) from error
    return JSONResponse(await get_courier(courier_id, services), 201 if created else 200)


@router.get("/api/couriers/{courier_id}")
async def get_courier(courier_id: str, services: ServicesDep) -> dict[str, Any]:
    """One courier."""
    async with services.database.read() as connection:
        row = await couriers.get_courier(connection, courier_id)
    if row is None:
        raise not_found("courier")
    return {
        "courierId": row.courier_id,
        "zone": row.zone,
        "lat": row.lat,
        "lng": row.lng,
        "capacity": row.capacity,
        "load": row.load,
        "online": row.online,
    }


@router.get("/api/couriers/{courier_id}/deliveries")
async def list_deliveries(courier_id: str, services: ServicesDep, page: Annotated[Page, Depends()]) -> dict[str, Any]:
    """What is on a courier's hands, newest first."""
    after = page.after(aware_time, str)
    async with services.database.read() as connection:
        if await couriers.get_courier(connection, courier_id) is None:
            raise not_found("courier")
        rows = await deliveries.deliveries_of(
            connection, courier_id, (after[0], after[1]) if after else None, page.limit + 1
        )
    return page.answer(rows, show_delivery, lambda row: (row.created_at, row.delivery_id))


# --- deliveries


class Act(Reasoned):
    """The body of a courier's action; the reason is an admin's."""

    courier_id: Text


@router.get("/api/deliveries/{delivery_id}")
async def get_delivery(delivery_id: str, services: ServicesDep) -> dict[str, Any]:
    """One delivery."""
    async with services.database.read() as connection:
        row = await deliveries.get_delivery(connection, delivery_id)
    if row is None:
        raise not_found("delivery")
    return show_delivery(row)


@router.post("/api/deliveries/{delivery_id}/{action}")
async def act(delivery_id: str, action: str, body: Act, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Accept, decline, pick up or complete. Doing it again changes nothing."""
    if action not in list(CourierAction):
        raise Problem(404, "not-found", "There is nothing at this address.")
    action = CourierAction(action)
    work = partial(deliveries.act, action=action) if action is not CourierAction.COMPLETE else orders.deliver
    doing = partial(work, delivery_id=delivery_id, courier_id=body.courier_id)
    if (name := admin(request)) is not None:
        doing = partial(_audited, work=doing, delivery_id=delivery_id, action=action, actor=name, reason=body.reason)
    try:
        await deliveries.courier_action(services.database, doing, delivery_id)
    except DeliveryMissing as error:
        raise not_found("delivery") from error
    except StillLocked as error:
        raise _conflict("The delivery or the courier is being changed by somebody else.", error.holder) from error
    except HeldByOther as error:
        lost = partial(deliveries.count_lost, delivery_id=delivery_id, courier_id=body.courier_id)
        await services.database.transact(partial(lost, action=action, holder=error.holder))
        raise _conflict("The delivery is not with this courier.", error.holder) from error
    except WrongStage as error:
        raise _wrong_stage(action, error.status) from error
    return await get_delivery(delivery_id, services)


async def _audited(
    connection: AsyncConnection,
    *,
    work: Callable[[AsyncConnection], Awaitable[bool]],
    delivery_id: str,
    action: CourierAction,
    actor: str,
    reason: str | None,
) -> bool:
    """Do, as an admin, what the courier would, and write that down with it. What is refused changes nothing."""
    before = await deliveries.get_delivery(connection, delivery_id)
    changed = await work(connection)
    after = await deliveries.get_delivery(connection, delivery_id)
    told = [{"status": row.status, "courierId": row.courier_id} if row is not None else None for row in (before, after)]
    await record_action(
        connection,
        actor,
        f"delivery.{action}",
        f"delivery:{delivery_id}",
        reason,
        before=told[0 if changed else 1],
        after=told[1],
    )
    return changed


def _conflict(title: str, holder: str | None, **members: Any) -> Problem:
    return conflict("assignment-conflict", title, holder=holder, **members)


def _wrong_stage(action: CourierAction, status: DeliveryStatus) -> Problem:
    if action is CourierAction.DECLINE:
        return conflict("already-picked-up", "The delivery was picked up already.", deliveryStatus=status)
    slug = "not-picked-up" if action is CourierAction.COMPLETE else "not-accepted"
    return conflict(slug, f"The delivery is {status}: it cannot be {_DONE[action]}.", deliveryStatus=status)


_DONE = {CourierAction.ACCEPT: "accepted", CourierAction.PICKUP: "picked up", CourierAction.COMPLETE: "completed"}


def show_delivery(row: Row[Any]) -> dict[str, Any]:
    return {
        "deliveryId": row.delivery_id,
        "orderId": row.order_id,
        "zone": row.zone,
        "status": row.status,
        "courierId": row.courier_id,
        "pinned": row.pinned,
        "late": row.late,
        "offerExpiresAt": time(row.offer_expires_at),
        "attention": row.attention,
        "timeline": timeline(row.timeline),
    }


# --- by hand


@router.post("/api/admin/deliveries/{delivery_id}/requeue")
async def requeue_delivery(
    delivery_id: str, body: NeedsReason, request: Request, services: ServicesDep
) -> dict[str, Any]:
    """Let a delivery that needs a person wait for couriers again; one that waits already is left so."""
    work = partial(requeue.put_back, delivery_id=delivery_id, actor=actor(request), reason=body.reason)
    try:
        await services.database.transact(work)
    except DeliveryMissing as error:
        raise not_found("delivery") from error
    except NotWaiting as error:
        title = f"The delivery is {error.status}: it needs nobody."
        raise _conflict(title, error.holder, deliveryStatus=error.status) from error
    return await get_delivery(delivery_id, services)


class Assign(Reasoned):
    """The body of `POST /api/admin/assignments`."""

    delivery_id: Text
    courier_id: Text
    force: bool = False


class Route(Reasoned):
    """The body of `POST /api/admin/routes`."""

    courier_id: Text
    delivery_ids: Annotated[list[Text], Field(min_length=1, max_length=200)]
    partial: bool = False


@router.post("/api/admin/assignments")
async def assign(body: Assign, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Give a delivery to a courier, and keep the rounds' hands off it."""
    lost = await _assign(
        services, request, body, [body.delivery_id], AssignmentSource.MANUAL, force=body.force, partial=False
    )
    if lost:
        raise _lost(lost)
    return await get_delivery(body.delivery_id, services)


@router.post("/api/admin/routes")
async def assign_route(body: Route, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Give several deliveries to a courier: all of them or, when `partial`, those that can be."""
    lost = await _assign(
        services, request, body, body.delivery_ids, AssignmentSource.ROUTE, force=False, partial=body.partial
    )
    if lost and (not body.partial or len(lost) == len(set(body.delivery_ids))):
        raise _lost(lost)
    missed = {each.delivery_id for each in lost}
    return {
        "courierId": body.courier_id,
        "assigned": [each for each in dict.fromkeys(body.delivery_ids) if each not in missed],
        "conflicts": [_show_conflict(each) for each in lost],
    }


async def _assign(
    services: Services,
    request: Request,
    body: Assign | Route,
    delivery_ids: list[str],
    source: AssignmentSource,
    *,
    force: bool,
    partial: bool,
) -> list[Conflict]:
    """One transaction: the assignment, its conflicts counted, and the audit of what was given."""
    await get_courier(body.courier_id, services)  # or its problem; couriers, once there, are never deleted
    pairs = [(delivery_id, body.courier_id) for delivery_id in delivery_ids]

    async def work(connection: AsyncConnection) -> list[Conflict]:
        lost = await commit.assign(connection, pairs, source, force=force, partial=partial)
        given = sorted(set(delivery_ids) - {each.delivery_id for each in lost}) if partial or not lost else []
        if given:
            after = {"courierId": body.courier_id, "deliveryIds": given}
            await record_action(
                connection,
                actor(request),
                f"assignment.{source}",
                f"courier:{body.courier_id}",
                body.reason,
                before=None,
                after=after,
            )
        return lost

    try:
        return await commit.attempt(services.database, pairs, source, work)
    except DeliveryMissing as error:
        raise not_found("delivery") from error


def _lost(lost: list[Conflict]) -> Problem:
    first = lost[0]
    shown = [_show_conflict(each) for each in lost]
    if first.kind is ConflictKind.CAPACITY:
        return conflict("courier-over-capacity", "The courier can take no more.", conflicts=shown)
    if first.kind is ConflictKind.COURIER_UNAVAILABLE:
        return conflict("courier-unavailable", "The courier is offline.", conflicts=shown)
    if first.kind is ConflictKind.LOCK_TIMEOUT:
        return _conflict(
            "The delivery or the courier is being changed by somebody else.", first.holder, conflicts=shown
        )
    return _conflict("The delivery is taken, or over.", first.holder, conflicts=shown)


def _show_conflict(each: Conflict) -> dict[str, Any]:
    return {"deliveryId": each.delivery_id, "kind": each.kind, "holder": each.holder}
