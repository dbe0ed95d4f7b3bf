"""Deliveries that wait again: declined, not accepted in time, left by a courier, or put back by a person.

After so many refusals as its zone allows offers, a delivery needs a person instead.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.assignment.commit import DeliveryMissing
from db.assignment.load import end_assignments, lock_couriers
from db.assignment.zones import ZoneSettings
from db.ops import record_action
from db.outbox.write import write_events
from domain.assignment.states import AssignmentOutcome, Attention, DeliveryStatus
from domain.outbox import zone_woken


class NotWaiting(Exception):
    """The delivery does not need a person: it is on its way, or over."""

    def __init__(self, status: DeliveryStatus, holder: str | None) -> None:
        super().__init__(f"the delivery is {status}")
        self.status = status
        self.holder = holder


_REFUSED = text("""
    UPDATE deliveries d SET
        status = CASE WHEN asked.enough THEN 'NEEDS_ATTENTION' ELSE 'PENDING' END,
        attention = CASE WHEN asked.enough THEN 'max_offers' END,
        courier_id = NULL, pinned = false, offer_expires_at = NULL, refusals = d.refusals + 1,
        timeline = d.timeline || jsonb_build_object('at', clock_timestamp(), 'what', CAST(:what AS text))
            || CASE WHEN asked.enough THEN jsonb_build_object('at', clock_timestamp(), 'what', 'needs_attention',
                'reason', 'max_offers: ' || asked.refusals || ' couriers were asked in vain') ELSE '[]' END
    FROM (
        SELECT w.delivery_id, w.refusals + 1 AS refusals,
            w.refusals + 1 >= COALESCE(z.max_offers, :default_max_offers) AS enough
        FROM deliveries w LEFT JOIN zones z ON z.zone = w.zone WHERE w.delivery_id = ANY(CAST(:delivery_ids AS text[]))
    ) asked
    WHERE d.delivery_id = asked.delivery_id
""")


async def refused(
    connection: AsyncConnection, delivery_ids: Collection[str], outcome: AssignmentOutcome, what: str
) -> None:
    """Couriers were asked for these and will not bring them; couriers and deliveries are locked.

    Who was asked is not asked again. The caller wakes the zone.
    """
    ids = list(delivery_ids)
    values = {"delivery_ids": ids, "what": what, "default_max_offers": ZoneSettings.max_offers}
    await connection.execute(_REFUSED, values)
    await end_assignments(connection, ids, outcome)


# --- offers past their deadline

_OVERDUE = "status = 'OFFERED' AND offer_expires_at <= clock_timestamp()"
_OVERDUE_IN_ZONE = text(f"""
    SELECT delivery_id, courier_id FROM deliveries WHERE zone = :zone AND {_OVERDUE}
    ORDER BY offer_expires_at LIMIT :limit
""")
_OVERDUE_ONE = text(f"SELECT delivery_id, courier_id FROM deliveries WHERE delivery_id = :delivery_id AND {_OVERDUE}")
_LOCK_OVERDUE = text(f"""
    SELECT delivery_id, zone, courier_id FROM deliveries
    WHERE delivery_id = ANY(CAST(:delivery_ids AS text[])) AND {_OVERDUE}
    ORDER BY delivery_id FOR NO KEY UPDATE
""")
_LOCK_OVERDUE_FREE = text(f"{_LOCK_OVERDUE.text} SKIP LOCKED")
_AT_ONCE = 500


async def expire_offers(connection: AsyncConnection, zone: str) -> tuple[int, int]:
    """End a zone's offers past their deadline, by the database's clock; answer how many were, 500 at most, and ended.

    One that somebody holds locked is left for the next time: the others do not wait for it.
    """
    overdue = (await connection.execute(_OVERDUE_IN_ZONE, {"zone": zone, "limit": _AT_ONCE})).all()
    return len(overdue), len(await _expire(connection, overdue, wait=False))


async def expire_offer(connection: AsyncConnection, delivery_id: str) -> None:
    """End one delivery's offer, if that is past its deadline, and wake its zone."""
    overdue = (await connection.execute(_OVERDUE_ONE, {"delivery_id": delivery_id})).all()
    await _wake(connection, {row.zone for row in await _expire(connection, overdue)})


async def _expire(connection: AsyncConnection, overdue: Sequence[Row[Any]], *, wait: bool = True) -> Sequence[Row[Any]]:
    """Those that are still overdue once they are locked, with the courier who was asked."""
    if not overdue:
        return []
    couriers = await lock_couriers(connection, {row.courier_id for row in overdue}, wait=wait)
    ids = [row.delivery_id for row in overdue if row.courier_id in couriers]
    locked = await connection.execute(_LOCK_OVERDUE if wait else _LOCK_OVERDUE_FREE, {"delivery_ids": ids})
    expired = [row for row in locked if row.courier_id in couriers]
    if not expired:
        return []
    await refused(connection, [row.delivery_id for row in expired], AssignmentOutcome.EXPIRED, "expired")
    return expired


# --- couriers who leave

_LOCK_OF_COURIER = text("""
    SELECT delivery_id, zone, status, attention FROM deliveries
    WHERE delivery_id IN (SELECT delivery_id FROM assignments WHERE courier_id = :courier_id AND live)
    ORDER BY delivery_id FOR NO KEY UPDATE
""")
_LEFT = text("""
    UPDATE deliveries SET status = 'PENDING', courier_id = NULL, pinned = false, offer_expires_at = NULL,
        timeline = timeline || jsonb_build_object('at', clock_timestamp(), 'what', 'courier_offline')
    WHERE delivery_id = ANY(CAST(:delivery_ids AS text[]))
""")
_FLAG = text("""
    UPDATE deliveries SET attention = 'courier_offline',
        timeline = timeline || jsonb_build_object('at', clock_timestamp(), 'what', 'needs_attention',
            'reason', 'courier_offline: the courier went offline with it')
    WHERE delivery_id = ANY(CAST(:delivery_ids AS text[])) AND attention IS NULL
""")
_UNFLAG = text("""
    UPDATE deliveries SET attention = NULL,
        timeline = timeline || jsonb_build_object('at', clock_timestamp(), 'what', 'courier_online')
    WHERE delivery_id = ANY(CAST(:delivery_ids AS text[])) AND attention = 'courier_offline'
""")


async def courier_left(connection: AsyncConnection, courier_id: str) -> None:
    """A locked courier went offline: what they had not picked up waits again, pinned or not; the rest needs a person.

    An offer counts as refused. What was assigned may come back to them when they do. What is picked up stays theirs.
    """
    rows = (await connection.execute(_LOCK_OF_COURIER, {"courier_id": courier_id})).all()
    offered, assigned, picked_up = (
        [row.delivery_id for row in rows if row.status == status]
        for status in (DeliveryStatus.OFFERED, DeliveryStatus.ASSIGNED, DeliveryStatus.PICKED_UP)
    )
    if offered:
        await refused(connection, offered, AssignmentOutcome.OFFLINE, "courier_offline")
    if assigned:
        await connection.execute(_LEFT, {"delivery_ids": assigned})
        await end_assignments(connection, assigned, AssignmentOutcome.OFFLINE)
    if picked_up:
        await connection.execute(_FLAG, {"delivery_ids": picked_up})
    await _wake(connection, {row.zone for row in rows if row.status != DeliveryStatus.PICKED_UP})


async def courier_returned(connection: AsyncConnection, courier_id: str) -> None:
    """A locked courier is online: what they went offline with needs nobody any more."""
    rows = (await connection.execute(_LOCK_OF_COURIER, {"courier_id": courier_id})).all()
    flagged = [row.delivery_id for row in rows if row.attention == Attention.COURIER_OFFLINE]
    if flagged:
        await connection.execute(_UNFLAG, {"delivery_ids": flagged})


async def _wake(connection: AsyncConnection, zones: Collection[str]) -> None:
    if zones:
        await write_events(connection, [zone_woken(zone) for zone in sorted(zones)])


# --- by a person

_LOCK_ONE = text("""
    SELECT zone, status, courier_id, attention, refusals FROM deliveries
    WHERE delivery_id = :delivery_id FOR NO KEY UPDATE
""")
_PUT_BACK = text("""
    UPDATE deliveries SET status = 'PENDING', attention = NULL, refusals = 0, pinned = false,
        timeline = timeline || jsonb_build_object('at', clock_timestamp(), 'what', 'requeued')
    WHERE delivery_id = :delivery_id
""")


async def put_back(connection: AsyncConnection, delivery_id: str, *, actor: str, reason: str) -> None:
    """Let a delivery that needs a person wait again, for couriers who were not asked yet; one that waits is left so.

    Raises DeliveryMissing, NotWaiting.
    """
    row = (await connection.execute(_LOCK_ONE, {"delivery_id": delivery_id})).one_or_none()
    if row is None:
        raise DeliveryMissing(delivery_id)
    status = DeliveryStatus(row.status)
    if status is DeliveryStatus.PENDING:
        return
    if status is not DeliveryStatus.NEEDS_ATTENTION:
        raise NotWaiting(status, row.courier_id)
    await connection.execute(_PUT_BACK, {"delivery_id": delivery_id})
    await _wake(connection, [row.zone])
    before = {"status": status, "attention": row.attention, "refusals": row.refusals}
    after = {"status": DeliveryStatus.PENDING}
    target = f"delivery:{delivery_id}"
    await record_action(connection, actor, "delivery.requeue", target, reason, before=before, after=after)
