"""Orders: each function that changes one is the body of one transaction, events included."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.assignment import deliveries
from db.assignment.commit import DeliveryMissing
from db.inventory import holds
from db.outbox.write import write_events
from domain.assignment.states import CourierAction
from domain.ids import delivery_id as derive_delivery_id
from domain.inventory import ReservationStatus
from domain.order import (
    Line,
    NewOrder,
    OrderCommand,
    OrderState,
    OrderStatus,
    Place,
    Refusal,
    Shortage,
    possible,
    quantities,
    refusal,
)
from domain.outbox import Event, EventType, order_event


class OrderMissing(LookupError):
    """There is no such order."""


_INSERT = text("""
    INSERT INTO orders (order_id, request_hash, customer_id, zone, status, lines, pickup, dropoff, dropoff_address,
        email, hold_seconds, timeline)
    VALUES (:order_id, :request_hash, :customer_id, :zone, 'RESERVED', CAST(:lines AS jsonb), CAST(:pickup AS jsonb),
        CAST(:dropoff AS jsonb), :dropoff_address, :email, :hold_seconds,
        jsonb_build_array(jsonb_build_object('at', clock_timestamp(), 'what', 'reserved')))
    ON CONFLICT (order_id) DO NOTHING RETURNING order_id
""")
_REJECT = text("""
    UPDATE orders SET status = 'REJECTED', shortages = CAST(:shortages AS jsonb),
        timeline = jsonb_build_array(jsonb_build_object('at', clock_timestamp(), 'what', 'rejected'))
    WHERE order_id = :order_id AND status = 'RESERVED'
""")


async def reserve(connection: AsyncConnection, order: NewOrder) -> OrderState:
    """Reserve all lines of a new order or reject it whole; an order that exists already is only loaded."""
    parameters = asdict(order)
    for name in ("lines", "pickup", "dropoff"):
        parameters[name] = json.dumps(parameters[name]) if parameters[name] is not None else None
    if await connection.scalar(_INSERT, parameters) is None:
        return await load_state(connection, order.order_id)
    wanted = quantities(order.lines)
    available = await holds.lock_products(connection, wanted)
    shortages = [
        Shortage(sku, quantity, available.get(sku, 0))
        for sku, quantity in wanted.items()
        if available.get(sku, 0) < quantity
    ]
    if shortages:
        rejected = json.dumps([asdict(shortage) for shortage in shortages])
        await connection.execute(_REJECT, {"order_id": order.order_id, "shortages": rejected})
        return OrderState(OrderStatus.REJECTED, shortages=shortages)
    await holds.hold(connection, order.order_id, wanted, order.hold_seconds)
    lines = [asdict(line) for line in order.lines]
    event = _event(EventType.ORDER_RESERVED, order.order_id, OrderStatus.RESERVED, order.customer_id, order.zone, lines)
    await write_events(connection, [event])
    return OrderState(OrderStatus.RESERVED, seconds_left=float(order.hold_seconds))


async def confirm(connection: AsyncConnection, order_id: str, promise_seconds: int) -> OrderState:
    """Take the held units out of stock and ask for the delivery; a hold past its deadline expires instead."""
    order, answer = await _begin(connection, order_id, OrderCommand.CONFIRM)
    if answer is not None:
        return answer
    await _set_status(connection, order_id, OrderStatus.CONFIRMED)
    await holds.close_reservations(connection, order_id, ReservationStatus.ACTIVE, ReservationStatus.COMMITTED)
    delivery = derive_delivery_id(order_id)
    pickup = Place(**order.pickup) if order.pickup else None
    dropoff = Place(**order.dropoff)
    await deliveries.request_delivery(connection, delivery, order_id, order.zone, pickup, dropoff, promise_seconds)
    requested = {"deliveryId": delivery, "zone": order.zone, "status": "PENDING"}
    await write_events(
        connection,
        [
            _row_event(EventType.ORDER_CONFIRMED, order, OrderStatus.CONFIRMED),
            order_event(EventType.DELIVERY_REQUESTED, delivery, order_id, requested),
        ],
    )
    return OrderState(OrderStatus.CONFIRMED, seconds_left=float(promise_seconds))


async def extend(connection: AsyncConnection, order_id: str, hold_seconds: int) -> OrderState:
    """Give the hold that many seconds from now; a hold past its deadline expires instead."""
    _, answer = await _begin(connection, order_id, OrderCommand.EXTEND)
    if answer is not None:
        return answer
    await holds.extend_hold(connection, order_id, hold_seconds)
    return OrderState(OrderStatus.RESERVED, seconds_left=await holds.seconds_left(connection, order_id))


async def cancel(connection: AsyncConnection, order_id: str) -> OrderState:
    """Give everything back, unless the delivery was picked up or the hold is past its deadline."""
    order, answer = await _begin(connection, order_id, OrderCommand.CANCEL)
    if answer is not None:
        return answer
    events = [_row_event(EventType.ORDER_CANCELLED, order, OrderStatus.CANCELLED)]
    held = ReservationStatus.ACTIVE
    if order.status == OrderStatus.CONFIRMED:
        held = ReservationStatus.COMMITTED
        await holds.lock_products(connection, {line["sku"] for line in order.lines})
        delivery = await deliveries.cancel_delivery(connection, order_id)
        if delivery is None:
            return replace(await load_state(connection, order_id), refusal=Refusal.ALREADY_PICKED_UP)
        cancelled = {"deliveryId": delivery, "zone": order.zone, "status": "CANCELLED"}
        events.append(order_event(EventType.DELIVERY_CANCELLED, delivery, order_id, cancelled))
    await _set_status(connection, order_id, OrderStatus.CANCELLED)
    await holds.close_reservations(connection, order_id, held, ReservationStatus.RELEASED)
    await write_events(connection, events)
    return OrderState(OrderStatus.CANCELLED)


async def expire(connection: AsyncConnection, order_id: str, *, outside: bool = False) -> OrderState:
    """End the hold if its deadline has passed, or answer how long it has left.

    `outside`: the caller is not the order's own workflow, which the event must then tell.
    """
    order = await _lock(connection, order_id)
    if order.status != OrderStatus.RESERVED:
        if outside:  # a hold of an order that is past holding: only an edit by hand leaves such a thing
            expired = ReservationStatus.EXPIRED
            await holds.close_reservations(connection, order_id, ReservationStatus.ACTIVE, expired)
        return await load_state(connection, order_id)
    seconds_left = await holds.seconds_left(connection, order_id)
    if seconds_left > 0:
        return OrderState(OrderStatus.RESERVED, seconds_left=seconds_left)
    await _expire_locked(connection, order, outside=outside)
    return OrderState(OrderStatus.EXPIRED)


async def watch_promise(connection: AsyncConnection, order_id: str) -> OrderState:
    """Mark a confirmed order's delivery late if its promise has passed, or answer how long that has left."""
    order = await _lock(connection, order_id)
    if order.status != OrderStatus.CONFIRMED:
        return await load_state(connection, order_id)
    return OrderState(OrderStatus.CONFIRMED, seconds_left=await deliveries.mark_late(connection, order_id))


async def deliver(connection: AsyncConnection, delivery_id: str, courier_id: str) -> bool:
    """The courier is at the door: delivery and order are DELIVERED together; answer whether that is news.

    Raises DeliveryMissing, HeldByOther, WrongStage.
    """
    row = await deliveries.get_delivery(connection, delivery_id)
    if row is None:
        raise DeliveryMissing(delivery_id)
    order = await _lock(connection, row.order_id)
    if not await deliveries.act(connection, delivery_id, courier_id, CourierAction.COMPLETE):
        return False
    await _set_status(connection, order.order_id, OrderStatus.DELIVERED)
    await write_events(connection, [_row_event(EventType.ORDER_DELIVERED, order, OrderStatus.DELIVERED, outside=True)])
    return True


async def _begin(
    connection: AsyncConnection, order_id: str, command: OrderCommand
) -> tuple[Row[Any], OrderState | None]:
    """Lock the order for a command; the second value is the answer where the command changes nothing."""
    order = await _lock(connection, order_id)
    stage = OrderStatus(order.status)
    if not possible(command, stage):
        return order, replace(await load_state(connection, order_id), refusal=refusal(command, stage))
    if stage is OrderStatus.RESERVED and await holds.seconds_left(connection, order_id) <= 0:
        await _expire_locked(connection, order, outside=False)
        return order, OrderState(OrderStatus.EXPIRED, refusal=Refusal.HOLD_EXPIRED)
    return order, None


_LOCK = text("""
    SELECT order_id, status, customer_id, zone, lines, pickup, dropoff FROM orders
    WHERE order_id = :order_id FOR NO KEY UPDATE
""")


async def _lock(connection: AsyncConnection, order_id: str) -> Row[Any]:
    order = (await connection.execute(_LOCK, {"order_id": order_id})).one_or_none()
    if order is None:
        raise OrderMissing(order_id)
    return order


_SET_STATUS = text("""
    UPDATE orders SET status = :status,
        timeline = timeline || jsonb_build_object('at', clock_timestamp(), 'what', lower(CAST(:status AS text)))
    WHERE order_id = :order_id
""")


async def _set_status(connection: AsyncConnection, order_id: str, status: OrderStatus) -> None:
    """Move a locked order on."""
    await connection.execute(_SET_STATUS, {"order_id": order_id, "status": status})


async def _expire_locked(connection: AsyncConnection, order: Row[Any], *, outside: bool) -> None:
    await _set_status(connection, order.order_id, OrderStatus.EXPIRED)
    await holds.close_reservations(connection, order.order_id, ReservationStatus.ACTIVE, ReservationStatus.EXPIRED)
    await write_events(connection, [_row_event(EventType.ORDER_EXPIRED, order, OrderStatus.EXPIRED, outside=outside)])


def _row_event(event_type: EventType, order: Row[Any], status: OrderStatus, *, outside: bool = False) -> Event:
    return _event(event_type, order.order_id, status, order.customer_id, order.zone, order.lines, outside=outside)


def _event(
    event_type: EventType,
    order_id: str,
    status: OrderStatus,
    customer_id: str,
    zone: str,
    lines: Sequence[Mapping[str, Any]],
    *,
    outside: bool = False,
) -> Event:
    data = {"status": status, "customerId": customer_id, "zone": zone, "lines": lines}
    return order_event(event_type, order_id, order_id, data, outside=outside)


# --- reads

_STATE = text("""
    SELECT o.status, o.shortages, CASE WHEN o.status = 'CONFIRMED' AND NOT d.late
        THEN CAST(extract(epoch FROM d.promised_at - clock_timestamp()) AS float8) END AS promise_seconds_left
    FROM orders o LEFT JOIN deliveries d ON d.order_id = o.order_id WHERE o.order_id = :order_id
""")


async def load_state(connection: AsyncConnection, order_id: str) -> OrderState:
    """What the order's row says now. Raises OrderMissing."""
    row = (await connection.execute(_STATE, {"order_id": order_id})).one_or_none()
    if row is None:
        raise OrderMissing(order_id)
    stage = OrderStatus(row.status)
    left = row.promise_seconds_left
    if stage is OrderStatus.RESERVED:
        left = await holds.seconds_left(connection, order_id)
    return OrderState(stage, seconds_left=left, shortages=[Shortage(**short) for short in row.shortages or []])


_READ = """
    SELECT o.order_id, o.request_hash, o.status, o.customer_id, o.zone, o.lines, o.shortages, o.timeline, o.created_at,
        (SELECT min(r.expires_at) FROM reservations r WHERE r.order_id = o.order_id) AS expires_at,
        d.delivery_id, d.status AS delivery_status, d.courier_id
    FROM orders o LEFT JOIN deliveries d ON d.order_id = o.order_id
"""
_GET = text(_READ + " WHERE o.order_id = :order_id")
_NEW = text("""
    SELECT order_id, request_hash, customer_id, zone, lines, pickup, dropoff, dropoff_address, email, hold_seconds
    FROM orders WHERE order_id = :order_id
""")


async def get_new_order(connection: AsyncConnection, order_id: str) -> NewOrder:
    """The request that made the order, as its workflow starts from it. Raises OrderMissing."""
    row = (await connection.execute(_NEW, {"order_id": order_id})).one_or_none()
    if row is None:
        raise OrderMissing(order_id)
    return NewOrder(
        **{
            **row._mapping,
            "lines": [Line(**line) for line in row.lines],
            "pickup": Place(**row.pickup) if row.pickup else None,
            "dropoff": Place(**row.dropoff),
        }
    )


_PAGE = " (o.created_at, o.order_id) < (:time, :id)"
_NEWEST = " ORDER BY o.created_at DESC, o.order_id DESC LIMIT :limit"


async def get_order(connection: AsyncConnection, order_id: str) -> Row[Any] | None:
    """One order as the API shows it."""
    return (await connection.execute(_GET, {"order_id": order_id})).one_or_none()


async def list_orders(
    connection: AsyncConnection,
    status: OrderStatus | None,
    after: tuple[datetime, str] | None,
    limit: int,
    customer_id: str | None = None,
) -> Sequence[Row[Any]]:
    """A page of orders, newest first: all of them, or those in a status, or a customer's."""
    conditions: list[str] = []
    parameters: dict[str, Any] = {"limit": limit}
    if status is not None:
        conditions.append(" o.status = :status")
        parameters |= {"status": status}
    if customer_id is not None:
        conditions.append(" o.customer_id = :customer_id")
        parameters |= {"customer_id": customer_id}
    if after is not None:
        conditions.append(_PAGE)
        parameters |= {"time": after[0], "id": after[1]}
    where = " WHERE" + " AND".join(conditions) if conditions else ""
    return (await connection.execute(text(_READ + where + _NEWEST), parameters)).all()
