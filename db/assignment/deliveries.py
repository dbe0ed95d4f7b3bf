"""Deliveries on their way: asked for, picked up, late, cancelled; what couriers do with them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from db.assignment.commit import DeliveryMissing
from db.assignment.counts import NO_ZONE, count_attempts
from db.assignment.load import end_assignments, lock_couriers
from db.assignment.requeue import expire_offer, refused
from db.assignment.zones import wake_if_waiting
from db.engine import Database, LookedTooEarly, is_lock_timeout
from db.outbox.write import write_events
from domain.assignment.states import (
    AssignmentOutcome,
    AssignmentSource,
    ConflictKind,
    CourierAction,
    DeliveryStatus,
    NoConflict,
)
from domain.order import Place
from domain.outbox import Event, EventType, order_event, zone_woken


class HeldByOther(Exception):
    """The courier does not have the delivery (any more): a race was lost."""

    def __init__(self, holder: str | None) -> None:
        super().__init__(f"the delivery is with {holder or 'nobody'}")
        self.holder = holder


class StillLocked(Exception):
    """Somebody else's change of the delivery or the courier took too long to wait for; counted."""

    def __init__(self, holder: str | None) -> None:
        super().__init__("the delivery or the courier is locked")
        self.holder = holder


class WrongStage(Exception):
    """The courier has the delivery, but it is not at the stage for that."""

    def __init__(self, status: DeliveryStatus) -> None:
        super().__init__(f"the delivery is {status}")
        self.status = status


_REQUEST = text("""
    INSERT INTO deliveries (delivery_id, order_id, zone, status, promised_at, pickup, dropoff, timeline)
    VALUES (:delivery_id, :order_id, :zone, 'PENDING', clock_timestamp() + make_interval(secs => :promise_seconds),
        CAST(:pickup AS jsonb), CAST(:dropoff AS jsonb),
        jsonb_build_array(jsonb_build_object('at', clock_timestamp(), 'what', 'requested')))
""")


async def request_delivery(
    connection: AsyncConnection,
    delivery_id: str,
    order_id: str,
    zone: str,
    pickup: Place | None,
    dropoff: Place,
    promise_seconds: int,
) -> None:
    """Insert the confirmed order's delivery, promised within so many seconds from now."""
    await connection.execute(
        _REQUEST,
        {
            "delivery_id": delivery_id,
            "order_id": order_id,
            "zone": zone,
            "pickup": json.dumps(asdict(pickup)) if pickup else None,
            "dropoff": json.dumps(asdict(dropoff)),
            "promise_seconds": float(promise_seconds),
        },
    )


_MOVE = text("""
    UPDATE deliveries SET status = :status, courier_id = :courier_id, offer_expires_at = NULL, attention = NULL,
        pinned = pinned AND CAST(:courier_id AS text) IS NOT NULL,
        timeline = timeline || jsonb_build_object('at', clock_timestamp(), 'what', CAST(:what AS text))
    WHERE delivery_id = :delivery_id
""")
_COURIER_OF_ORDER = text("SELECT courier_id FROM deliveries WHERE order_id = :order_id")
_LOCK_BY_ORDER = text("""
    SELECT delivery_id, order_id, zone, status, courier_id, late,
        CAST(extract(epoch FROM promised_at - clock_timestamp()) AS float8) AS seconds_left
    FROM deliveries WHERE order_id = :order_id FOR NO KEY UPDATE
""")
_CANCELLABLE = (
    DeliveryStatus.PENDING,
    DeliveryStatus.OFFERED,
    DeliveryStatus.ASSIGNED,
    DeliveryStatus.NEEDS_ATTENTION,
)


async def cancel_delivery(connection: AsyncConnection, order_id: str) -> str | None:
    """Cancel an order's delivery unless it was picked up; answer its id, or None where it was."""
    courier_id: str | None = await connection.scalar(_COURIER_OF_ORDER, {"order_id": order_id})
    if courier_id is not None:
        await lock_couriers(connection, [courier_id])
    delivery = (await connection.execute(_LOCK_BY_ORDER, {"order_id": order_id})).one()
    if delivery.courier_id not in (None, courier_id):
        raise LookedTooEarly
    if delivery.status not in _CANCELLABLE:
        return None
    if delivery.courier_id is not None:
        await end_assignments(connection, [delivery.delivery_id], AssignmentOutcome.CANCELLED)
        await wake_if_waiting(connection, delivery.zone)
    await _move(connection, delivery, DeliveryStatus.CANCELLED, delivery.courier_id, "cancelled")
    return str(delivery.delivery_id)


async def mark_late(connection: AsyncConnection, order_id: str) -> float | None:
    """Mark an open delivery late, once, if its promise has passed; answer the seconds left where it has not.

    None: there is nothing (more) to wait for.
    """
    delivery = (await connection.execute(_LOCK_BY_ORDER, {"order_id": order_id})).one_or_none()
    if delivery is None or delivery.late or delivery.status in (DeliveryStatus.DELIVERED, DeliveryStatus.CANCELLED):
        return None
    if delivery.seconds_left > 0:
        return float(delivery.seconds_left)
    await _set_late(connection, delivery)
    return None


_LATE = text("""
    UPDATE deliveries SET late = true,
        timeline = timeline || jsonb_build_object('at', clock_timestamp(), 'what', 'late')
    WHERE delivery_id = :delivery_id
""")


async def _set_late(connection: AsyncConnection, delivery: Row[Any]) -> None:
    await connection.execute(_LATE, {"delivery_id": delivery.delivery_id})
    await write_events(connection, [_event(EventType.DELIVERY_LATE, delivery, delivery.status, delivery.courier_id)])


# --- what couriers do

_LOCK = text("""
    SELECT delivery_id, order_id, zone, status, courier_id, late,
        CAST(extract(epoch FROM promised_at - clock_timestamp()) AS float8) AS seconds_left
    FROM deliveries WHERE delivery_id = :delivery_id FOR NO KEY UPDATE
""")
_DECLINED = text("""
    SELECT EXISTS (SELECT FROM assignments
        WHERE delivery_id = :delivery_id AND courier_id = :courier_id AND outcome = 'declined')
""")

# (action, stage) → the stage it leads to; the same stage where it was done before.
_STEPS: dict[tuple[CourierAction, DeliveryStatus], DeliveryStatus] = {
    (CourierAction.ACCEPT, DeliveryStatus.OFFERED): DeliveryStatus.ASSIGNED,
    (CourierAction.ACCEPT, DeliveryStatus.ASSIGNED): DeliveryStatus.ASSIGNED,
    (CourierAction.ACCEPT, DeliveryStatus.PICKED_UP): DeliveryStatus.PICKED_UP,
    # or NEEDS_ATTENTION, after too many refusals
    (CourierAction.DECLINE, DeliveryStatus.OFFERED): DeliveryStatus.PENDING,
    (CourierAction.DECLINE, DeliveryStatus.ASSIGNED): DeliveryStatus.PENDING,
    (CourierAction.PICKUP, DeliveryStatus.ASSIGNED): DeliveryStatus.PICKED_UP,
    (CourierAction.PICKUP, DeliveryStatus.PICKED_UP): DeliveryStatus.PICKED_UP,
    (CourierAction.PICKUP, DeliveryStatus.DELIVERED): DeliveryStatus.DELIVERED,
    (CourierAction.COMPLETE, DeliveryStatus.PICKED_UP): DeliveryStatus.DELIVERED,
    (CourierAction.COMPLETE, DeliveryStatus.DELIVERED): DeliveryStatus.DELIVERED,
}


async def act(connection: AsyncConnection, delivery_id: str, courier_id: str, action: CourierAction) -> bool:
    """Carry out what a courier does with a delivery; answer whether that changed anything.

    Raises DeliveryMissing, HeldByOther, WrongStage. For COMPLETE the caller has locked the order.
    """
    await lock_couriers(connection, [courier_id])
    delivery = (await connection.execute(_LOCK, {"delivery_id": delivery_id})).one_or_none()
    if delivery is None:
        raise DeliveryMissing(delivery_id)
    stage = DeliveryStatus(delivery.status)
    after = _STEPS.get((action, stage))
    if delivery.courier_id != courier_id or stage is DeliveryStatus.CANCELLED:
        if action is not CourierAction.DECLINE or not await _declined_before(connection, delivery_id, courier_id):
            raise HeldByOther(delivery.courier_id if stage is not DeliveryStatus.CANCELLED else None)
        after = stage
    if after is None:
        raise WrongStage(stage)
    if after is stage:
        await count_attempts(connection, AssignmentSource.COURIER, [(delivery.zone, NoConflict.REPLAY)])
        return False
    await _step(connection, delivery, courier_id, action, after)
    return True


async def _declined_before(connection: AsyncConnection, delivery_id: str, courier_id: str) -> bool:
    return bool(await connection.scalar(_DECLINED, {"delivery_id": delivery_id, "courier_id": courier_id}))


_ACCEPT = text("""
    UPDATE deliveries SET status = 'ASSIGNED', offer_expires_at = NULL,
        timeline = timeline || jsonb_build_object('at', clock_timestamp(), 'what', 'accepted')
    WHERE delivery_id = :delivery_id AND status = 'OFFERED' AND offer_expires_at > clock_timestamp()
""")


async def _step(
    connection: AsyncConnection, delivery: Row[Any], courier_id: str, action: CourierAction, after: DeliveryStatus
) -> None:
    key = {"delivery_id": delivery.delivery_id}
    if action is CourierAction.DECLINE:
        await refused(connection, [delivery.delivery_id], AssignmentOutcome.DECLINED, "declined")
        await write_events(connection, [zone_woken(delivery.zone)])
    elif action is CourierAction.ACCEPT:
        if not (await connection.execute(_ACCEPT, key)).rowcount:
            raise HeldByOther(None)
        await write_events(connection, [_event(EventType.DELIVERY_ASSIGNED, delivery, after, courier_id)])
    elif action is CourierAction.PICKUP:
        await _move(connection, delivery, after, courier_id, "picked_up")
        await write_events(connection, [_event(EventType.DELIVERY_PICKED_UP, delivery, after, courier_id)])
    else:
        if delivery.seconds_left <= 0 and not delivery.late:
            await _set_late(connection, delivery)
        await _move(connection, delivery, after, courier_id, "delivered")
        await end_assignments(connection, [delivery.delivery_id], AssignmentOutcome.DELIVERED)
        await wake_if_waiting(connection, delivery.zone)


# --- couriers who come too late

_LOST = text("""
    SELECT assignment_id, outcome, lost_counted,
        (SELECT zone FROM deliveries WHERE delivery_id = :delivery_id) AS zone
    FROM assignments WHERE delivery_id = :delivery_id AND courier_id = :courier_id AND NOT live
    ORDER BY assignment_id DESC LIMIT 1 FOR NO KEY UPDATE
""")
_COUNTED = text("UPDATE assignments SET lost_counted = true WHERE assignment_id = :assignment_id")
_OWN_DOING = (AssignmentOutcome.DECLINED, AssignmentOutcome.OFFLINE)


async def count_lost(
    connection: AsyncConnection, delivery_id: str, courier_id: str, action: CourierAction, holder: str | None
) -> None:
    """Count that a courier came too late for what they once had: once, however often they ask again.

    An offer whose deadline has passed unnoticed so far ends here.
    """
    await expire_offer(connection, delivery_id)
    lost = (await connection.execute(_LOST, {"delivery_id": delivery_id, "courier_id": courier_id})).one_or_none()
    if lost is None or lost.outcome == AssignmentOutcome.DELIVERED:
        return
    if holder is None and lost.outcome in _OWN_DOING:  # they gave it away, and nobody took it
        return
    await connection.execute(_COUNTED, {"assignment_id": lost.assignment_id})
    kind: ConflictKind | NoConflict = ConflictKind.DELIVERY_TAKEN
    if lost.lost_counted:
        kind = NoConflict.DUPLICATE
    elif lost.outcome == AssignmentOutcome.CANCELLED:
        kind = NoConflict.SUPERSEDED
    elif action is CourierAction.ACCEPT:
        kind = ConflictKind.LATE_ACCEPT
    await count_attempts(connection, AssignmentSource.COURIER, [(lost.zone, kind)])


async def courier_action(
    database: Database, work: Callable[[AsyncConnection], Awaitable[bool]], delivery_id: str
) -> None:
    """Run a courier's transaction. Raises StillLocked where it waited too long for somebody else's lock."""
    try:
        await database.transact(work)
    except DBAPIError as error:
        if not is_lock_timeout(error):
            raise
        holder = await database.transact(lambda connection: _lost_the_wait(connection, delivery_id))
        raise StillLocked(holder) from error


async def _lost_the_wait(connection: AsyncConnection, delivery_id: str) -> str | None:
    """Count it; answer who has the delivery."""
    row = await get_delivery(connection, delivery_id)
    zone = row.zone if row is not None else NO_ZONE
    await count_attempts(connection, AssignmentSource.COURIER, [(zone, ConflictKind.LOCK_TIMEOUT)])
    return row.courier_id if row is not None else None


async def _move(
    connection: AsyncConnection, delivery: Row[Any], status: DeliveryStatus, courier_id: str | None, what: str
) -> None:
    values = {"delivery_id": delivery.delivery_id, "status": status, "courier_id": courier_id, "what": what}
    await connection.execute(_MOVE, values)


def _event(event_type: EventType, delivery: Row[Any], status: str, courier_id: str | None) -> Event:
    data = {"deliveryId": delivery.delivery_id, "zone": delivery.zone, "status": status, "courierId": courier_id}
    return order_event(event_type, delivery.delivery_id, delivery.order_id, data)


# --- reads

_GET = """
    SELECT delivery_id, order_id, zone, status, courier_id, pinned, late, offer_expires_at, attention, timeline,
        created_at
    FROM deliveries
"""
_GET_ONE = text(_GET + " WHERE delivery_id = :delivery_id")
_OF_COURIER = text(f"""
    {_GET} WHERE delivery_id IN (SELECT delivery_id FROM assignments WHERE courier_id = :courier_id AND live)
        AND (CAST(:after_time AS timestamptz) IS NULL OR (created_at, delivery_id) < (:after_time, :after_id))
    ORDER BY created_at DESC, delivery_id DESC LIMIT :limit
""")


_IN_TROUBLE = text(f"""
    {_GET} WHERE (attention IS NOT NULL OR status = 'NEEDS_ATTENTION')
        AND (CAST(:zone AS text) IS NULL OR zone = :zone)
        AND (CAST(:after_time AS timestamptz) IS NULL OR (created_at, delivery_id) < (:after_time, :after_id))
    ORDER BY created_at DESC, delivery_id DESC LIMIT :limit
""")


async def get_delivery(connection: AsyncConnection, delivery_id: str) -> Row[Any] | None:
    """One delivery."""
    return (await connection.execute(_GET_ONE, {"delivery_id": delivery_id})).one_or_none()


async def deliveries_of(
    connection: AsyncConnection, courier_id: str, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Row[Any]]:
    """A page of what is on a courier's hands, newest first."""
    time, delivery_id = after or (None, None)
    parameters = {"courier_id": courier_id, "after_time": time, "after_id": delivery_id, "limit": limit}
    return (await connection.execute(_OF_COURIER, parameters)).all()


async def deliveries_needing_attention(
    connection: AsyncConnection, zone: str | None, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Row[Any]]:
    """A page of what needs a person, newest first."""
    time, delivery_id = after or (None, None)
    parameters = {"zone": zone, "after_time": time, "after_id": delivery_id, "limit": limit}
    return (await connection.execute(_IN_TROUBLE, parameters)).all()
