"""Giving deliveries to couriers: the one function that all assigners go through.

Couriers are locked by id, then deliveries by id; then everything is looked at under those locks, and only then changed.
So an attempt that loses has changed nothing, and knows to whom it lost.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.assignment.couriers import lock_couriers, move_load
from db.outbox.write import write_events
from domain.assignment.states import AssignmentSource, ConflictKind, DeliveryStatus, taken_by_nobody
from domain.outbox import EventType, order_event


class DeliveryMissing(LookupError):
    """There is no such delivery."""


@dataclass(frozen=True)
class Conflict:
    """Why a delivery was not given to the courier, and who has it."""

    delivery_id: str
    kind: ConflictKind
    holder: str | None


_HOLDERS = text("""
    SELECT delivery_id, courier_id FROM deliveries WHERE delivery_id = ANY(CAST(:delivery_ids AS text[]))
""")
_LOCK = text("""
    SELECT delivery_id, order_id, zone, status, courier_id, pinned FROM deliveries
    WHERE delivery_id = ANY(CAST(:delivery_ids AS text[])) ORDER BY delivery_id FOR NO KEY UPDATE
""")


async def assign(
    connection: AsyncConnection,
    courier_id: str,
    delivery_ids: Sequence[str],
    source: AssignmentSource,
    *,
    round_id: str | None = None,
    force: bool = False,
    partial: bool = False,
) -> list[Conflict]:
    """Give the deliveries to the courier; answer the conflicts, each counted. Raises DeliveryMissing.

    Without `partial` one conflict means that nothing was given. `force` takes over a delivery that is only offered to
    another courier. Deliveries that the courier has already are no conflict: the attempt was made before.
    Manual and route assignments pin: rounds keep their hands off.
    """
    holders = {row.courier_id for row in await connection.execute(_HOLDERS, {"delivery_ids": list(delivery_ids)})}
    couriers = await lock_couriers(connection, {courier_id, *(holder for holder in holders if holder)})
    rows = await connection.execute(_LOCK, {"delivery_ids": list(delivery_ids)})
    deliveries = {row.delivery_id: row for row in rows}
    for delivery_id in delivery_ids:
        if delivery_id not in deliveries:
            raise DeliveryMissing(delivery_id)
    wanted = [deliveries[delivery_id] for delivery_id in dict.fromkeys(delivery_ids)]
    conflicts: list[Conflict] = []
    given: list[Row[Any]] = []
    for delivery in wanted:
        if delivery.courier_id == courier_id and _given(delivery.status):
            if source is not AssignmentSource.AUTO:
                await connection.execute(_PIN, {"delivery_id": delivery.delivery_id})
            continue
        kind = _conflict(couriers.get(courier_id), delivery, source, len(given), force=force)
        if kind is None and delivery.courier_id is not None and delivery.courier_id not in couriers:
            kind = ConflictKind.DELIVERY_TAKEN  # offered to somebody else between our two looks
        if kind is None:
            given.append(delivery)
        else:
            conflicts.append(Conflict(delivery.delivery_id, kind, delivery.courier_id))
    # A client's cancel is nobody's conflict.
    lost = [each for each in conflicts if deliveries[each.delivery_id].status != DeliveryStatus.CANCELLED]
    await count_conflicts(connection, source, [each.kind for each in (lost if partial else lost[:1])])
    if conflicts and not partial:
        return conflicts
    for delivery in given:
        await _give(connection, courier_id, delivery, source, round_id)
    return conflicts


def _given(status: str) -> bool:
    """Whether a delivery with a courier is, or was, really theirs: giving it to them again is a replay."""
    return status not in (DeliveryStatus.CANCELLED, DeliveryStatus.NEEDS_ATTENTION, DeliveryStatus.PENDING)


def _conflict(
    courier: Row[Any] | None, delivery: Row[Any], source: AssignmentSource, given: int, *, force: bool
) -> ConflictKind | None:
    """What stands in the way of one delivery, after so many were given in the same attempt."""
    free = taken_by_nobody(delivery.status) or (force and delivery.status == DeliveryStatus.OFFERED)
    if not free or (source is AssignmentSource.AUTO and (delivery.pinned or delivery.status != DeliveryStatus.PENDING)):
        return ConflictKind.DELIVERY_TAKEN
    if courier is None or not courier.online:
        return ConflictKind.COURIER_UNAVAILABLE
    if courier.load + given >= courier.capacity:
        return ConflictKind.CAPACITY
    return None


_ASSIGN = text("""
    UPDATE deliveries SET status = 'ASSIGNED', courier_id = :courier_id, pinned = pinned OR :pinned,
        offer_expires_at = NULL,
        timeline = timeline || jsonb_build_object('at', clock_timestamp(), 'what', 'assigned')
    WHERE delivery_id = :delivery_id
""")
_PIN = text("UPDATE deliveries SET pinned = true WHERE delivery_id = :delivery_id AND NOT pinned")
_INSERT = text("""
    INSERT INTO assignments (delivery_id, courier_id, source, round_id)
    VALUES (:delivery_id, :courier_id, :source, :round_id)
""")


async def _give(
    connection: AsyncConnection, courier_id: str, delivery: Row[Any], source: AssignmentSource, round_id: str | None
) -> None:
    if delivery.courier_id is not None:
        await end_assignment(connection, delivery.delivery_id, delivery.courier_id, "taken_over")
    key = {"delivery_id": delivery.delivery_id, "courier_id": courier_id}
    await connection.execute(_ASSIGN, {**key, "pinned": source is not AssignmentSource.AUTO})
    await connection.execute(_INSERT, {**key, "source": source, "round_id": round_id})
    await move_load(connection, courier_id, 1)
    data = {"deliveryId": delivery.delivery_id, "zone": delivery.zone, "status": "ASSIGNED", "courierId": courier_id}
    event = order_event(EventType.DELIVERY_ASSIGNED, delivery.delivery_id, delivery.order_id, data)
    await write_events(connection, [event])


_END = text("""
    UPDATE assignments SET live = false, outcome = :outcome, ended_at = now()
    WHERE delivery_id = :delivery_id AND courier_id = :courier_id AND live
""")


async def end_assignment(connection: AsyncConnection, delivery_id: str, courier_id: str, outcome: str) -> None:
    """Take a delivery off a locked courier's hands."""
    ended = await connection.execute(_END, {"delivery_id": delivery_id, "courier_id": courier_id, "outcome": outcome})
    if ended.rowcount:
        await move_load(connection, courier_id, -1)


_COUNT = text("""
    INSERT INTO conflict_counts (source, kind, bucket, total) VALUES (:source, :kind, :bucket, :number)
    ON CONFLICT (source, kind, bucket) DO UPDATE SET total = conflict_counts.total + excluded.total
""")
_BUCKETS = 16


async def count_conflicts(connection: AsyncConnection, source: AssignmentSource, kinds: Sequence[ConflictKind]) -> None:
    """Count attempts that lost. One of several buckets for all of them, and the kinds in order: losers neither queue
    for one row nor lock two of them crosswise."""
    bucket = random.randrange(_BUCKETS)
    for kind, number in sorted(Counter(kinds).items()):
        values = {"source": source, "kind": kind, "bucket": bucket, "number": number}
        await connection.execute(_COUNT, values)
