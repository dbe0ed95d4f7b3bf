"""Giving deliveries to couriers: the one function that all assigners go through.

Couriers are locked by id, then deliveries by id; then everything is looked at under those locks, and only then changed.
So an attempt that loses has changed nothing, and knows to whom it lost.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial as bind
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from db.assignment.counts import NO_ZONE, Attempt, count_attempts
from db.assignment.load import end_assignments, lock_couriers
from db.assignment.zones import wake_if_waiting
from db.engine import Database, is_lock_timeout
from db.outbox.write import write_events
from domain.assignment.states import (
    AssignmentOutcome,
    AssignmentSource,
    ConflictKind,
    DeliveryStatus,
    NoConflict,
    with_a_courier,
)
from domain.outbox import EventType, order_event, rfc3339


class DeliveryMissing(LookupError):
    """There is no such delivery."""


@dataclass(frozen=True)
class Conflict:
    """Why a delivery was not given to the courier, and who has it."""

    delivery_id: str
    courier_id: str
    kind: ConflictKind
    holder: str | None


_HOLDERS = text("""
    SELECT delivery_id, zone, courier_id FROM deliveries WHERE delivery_id = ANY(CAST(:delivery_ids AS text[]))
""")
_LOCK = text("""
    SELECT delivery_id, order_id, zone, status, courier_id FROM deliveries
    WHERE delivery_id = ANY(CAST(:delivery_ids AS text[])) ORDER BY delivery_id FOR NO KEY UPDATE
""")
_PAST = text("""
    SELECT delivery_id, courier_id, source, offered OR outcome = 'declined' AS asked FROM assignments
    WHERE delivery_id = ANY(CAST(:delivery_ids AS text[])) ORDER BY assignment_id
""")
_PIN = text("UPDATE deliveries SET pinned = true WHERE delivery_id = ANY(CAST(:delivery_ids AS text[])) AND NOT pinned")

Pairs = Sequence[tuple[str, str]]
"""Delivery ids, each with the id of the courier who is to have it."""


async def assign(
    connection: AsyncConnection,
    pairs: Pairs,
    source: AssignmentSource,
    *,
    round_id: str | None = None,
    accept_window_seconds: float = 0.0,
    force: bool = False,
    partial: bool = False,
) -> list[Conflict]:
    """Give each delivery to its courier; answer the conflicts, each counted. Raises DeliveryMissing.

    Without `partial` one conflict means that nothing was given. `force` takes over a delivery that is only offered to
    another courier. Deliveries that the courier has already are no conflict: the attempt was made before.
    With an accept window it is an offer that ends after so many seconds. Manual and route assignments pin.
    """
    look = await _look(connection, pairs, source)
    conflicts: list[Conflict] = []
    given: list[tuple[Row[Any], str]] = []
    counted: list[Attempt] = []
    again = Counter(pairs) - Counter(set(pairs))
    apart: list[Attempt] = [(look.deliveries[each].zone, NoConflict.DUPLICATE) for each, _ in again.elements()]
    for delivery_id, courier_id in dict.fromkeys(pairs):
        delivery = look.deliveries[delivery_id]
        verdict = look.judge(delivery, courier_id, force=force)
        if verdict is None:
            look.room[courier_id] -= 1
            given.append((delivery, courier_id))
        elif verdict is NoConflict.REPLAY:
            apart.append((delivery.zone, verdict))
        elif verdict is NoConflict.SUPERSEDED:
            apart.append((delivery.zone, verdict))
            conflicts.append(Conflict(delivery_id, courier_id, ConflictKind.DELIVERY_TAKEN, None))
        elif isinstance(verdict, ConflictKind):
            counted.append((delivery.zone, verdict))
            conflicts.append(Conflict(delivery_id, courier_id, verdict, delivery.courier_id))
    if not conflicts or partial:
        lost = {each.delivery_id for each in conflicts}
        if source is not AssignmentSource.AUTO:
            kept = [delivery_id for delivery_id, _ in pairs if delivery_id not in lost]
            await connection.execute(_PIN, {"delivery_ids": kept})
        if given:
            await _give(connection, given, source, round_id, accept_window_seconds)
    # What was all or nothing was one attempt.
    await count_attempts(connection, source, [*(counted if partial else counted[:1]), *apart])
    return conflicts


@dataclass(frozen=True)
class _Look:
    """Everything that an attempt looks at, under its locks."""

    source: AssignmentSource
    couriers: Mapping[str, Row[Any]]
    deliveries: Mapping[str, Row[Any]]
    past: Mapping[str, Sequence[Row[Any]]]
    room: dict[str, int]
    """How many more deliveries each courier can take."""

    def judge(self, delivery: Row[Any], courier_id: str, *, force: bool) -> ConflictKind | NoConflict | None:
        """What stands in the way of one delivery; nothing, where it can be given."""
        status = DeliveryStatus(delivery.status)
        if status is DeliveryStatus.CANCELLED:
            return NoConflict.SUPERSEDED
        taking_over = False
        if with_a_courier(status):
            own = delivery.courier_id == courier_id
            if own and (self.source is AssignmentSource.AUTO or status is not DeliveryStatus.OFFERED):
                return NoConflict.REPLAY
            taking_over = status is DeliveryStatus.OFFERED and (own or force) and delivery.courier_id in self.couriers
            if not taking_over:
                return self._taken(delivery)
        if self.source is AssignmentSource.AUTO and status is DeliveryStatus.NEEDS_ATTENTION:
            return ConflictKind.STALE_ROUND
        return self._courier_cannot(delivery, courier_id, holds_it=taking_over and delivery.courier_id == courier_id)

    def _taken(self, delivery: Row[Any]) -> ConflictKind:
        """By another assigner; or by another round, which is why this one is stale."""
        given_by = self.past[delivery.delivery_id][-1].source if self.past[delivery.delivery_id] else None
        if self.source is AssignmentSource.AUTO and given_by == AssignmentSource.AUTO:
            return ConflictKind.STALE_ROUND
        return ConflictKind.DELIVERY_TAKEN

    def _courier_cannot(self, delivery: Row[Any], courier_id: str, *, holds_it: bool) -> ConflictKind | None:
        courier = self.couriers.get(courier_id)
        if courier is None or not courier.online:
            return ConflictKind.COURIER_UNAVAILABLE
        if self.room[courier_id] <= 0 and not holds_it:
            return ConflictKind.CAPACITY
        if self.source is AssignmentSource.AUTO and (
            courier.zone != delivery.zone
            or any(each.asked and each.courier_id == courier_id for each in self.past[delivery.delivery_id])
        ):
            return ConflictKind.STALE_ROUND
        return None


async def _look(connection: AsyncConnection, pairs: Pairs, source: AssignmentSource) -> _Look:
    """Lock what the attempt concerns, and look. Raises DeliveryMissing."""
    wanted = {"delivery_ids": list({delivery_id for delivery_id, _ in pairs})}
    courier_ids = {courier_id for _, courier_id in pairs}
    if source is not AssignmentSource.AUTO:  # who takes over an offer frees its courier
        courier_ids |= {row.courier_id for row in await connection.execute(_HOLDERS, wanted) if row.courier_id}
    couriers = await lock_couriers(connection, courier_ids)
    deliveries = {row.delivery_id: row for row in await connection.execute(_LOCK, wanted)}
    for delivery_id, _ in pairs:
        if delivery_id not in deliveries:
            raise DeliveryMissing(delivery_id)
    past: defaultdict[str, list[Row[Any]]] = defaultdict(list)
    for row in await connection.execute(_PAST, wanted):
        past[row.delivery_id].append(row)
    room = {courier_id: courier.capacity - courier.load for courier_id, courier in couriers.items()}
    return _Look(source, couriers, deliveries, past, room)


_MOVE = text("""
    UPDATE deliveries d SET status = :status, courier_id = given.courier_id, pinned = d.pinned OR :pinned,
        attention = NULL,
        offer_expires_at = CASE WHEN :offered
            THEN clock_timestamp() + make_interval(secs => :accept_window_seconds) END,
        timeline = d.timeline || jsonb_build_object('at', clock_timestamp(), 'what', lower(CAST(:status AS text)))
    FROM unnest(CAST(:delivery_ids AS text[]), CAST(:courier_ids AS text[])) AS given(delivery_id, courier_id)
    WHERE d.delivery_id = given.delivery_id
    RETURNING d.delivery_id, d.offer_expires_at
""")
_INSERT = text("""
    INSERT INTO assignments (delivery_id, courier_id, source, round_id, offered)
    SELECT given.delivery_id, given.courier_id, :source, :round_id, :offered
    FROM unnest(CAST(:delivery_ids AS text[]), CAST(:courier_ids AS text[])) AS given(delivery_id, courier_id)
""")
# The table's check is the last guard.
_ADD_LOAD = text("""
    UPDATE couriers c SET load = c.load + given.number, updated_at = now()
    FROM (SELECT courier_id, CAST(count(*) AS integer) AS number
        FROM unnest(CAST(:courier_ids AS text[])) AS ids(courier_id) GROUP BY courier_id) given
    WHERE c.courier_id = given.courier_id
""")


async def _give(
    connection: AsyncConnection,
    given: Collection[tuple[Row[Any], str]],
    source: AssignmentSource,
    round_id: str | None,
    accept_window_seconds: float,
) -> None:
    """Give locked deliveries to locked couriers; those that are taken over leave the hands they were on."""
    taken_over = [delivery for delivery, _ in given if delivery.courier_id is not None]
    if taken_over:
        ids = [delivery.delivery_id for delivery in taken_over]
        await end_assignments(connection, ids, AssignmentOutcome.TAKEN_OVER)
    offered = accept_window_seconds > 0
    status = DeliveryStatus.OFFERED if offered else DeliveryStatus.ASSIGNED
    key = {
        "delivery_ids": [delivery.delivery_id for delivery, _ in given],
        "courier_ids": [courier_id for _, courier_id in given],
    }
    how = {"status": status, "pinned": source is not AssignmentSource.AUTO, "offered": offered}
    moved = await connection.execute(_MOVE, {**key, **how, "accept_window_seconds": accept_window_seconds})
    deadlines = {row.delivery_id: row.offer_expires_at for row in moved}
    await connection.execute(_INSERT, {**key, "source": source, "round_id": round_id, "offered": offered})
    await connection.execute(_ADD_LOAD, {"courier_ids": key["courier_ids"]})
    events = []
    for delivery, courier_id in given:
        data = {"deliveryId": delivery.delivery_id, "zone": delivery.zone, "status": status, "courierId": courier_id}
        if offered:
            data["offerExpiresAt"] = rfc3339(deadlines[delivery.delivery_id])
        event_type = EventType.DELIVERY_OFFERED if offered else EventType.DELIVERY_ASSIGNED
        events.append(order_event(event_type, delivery.delivery_id, delivery.order_id, data))
    await write_events(connection, events)
    for zone in sorted({delivery.zone for delivery in taken_over}):
        await wake_if_waiting(connection, zone)


async def attempt(
    database: Database,
    pairs: Pairs,
    source: AssignmentSource,
    work: Callable[[AsyncConnection], Awaitable[list[Conflict]]],
) -> list[Conflict]:
    """Run an assigner's transaction; one that waited too long for somebody else's lock is a counted conflict too."""
    try:
        return await database.transact(work)
    except DBAPIError as error:
        if not is_lock_timeout(error):
            raise
    return await database.transact(bind(_lost_the_wait, pairs=pairs, source=source))


async def _lost_the_wait(connection: AsyncConnection, pairs: Pairs, source: AssignmentSource) -> list[Conflict]:
    wanted = {"delivery_ids": [delivery_id for delivery_id, _ in pairs]}
    found = {row.delivery_id: row for row in await connection.execute(_HOLDERS, wanted)}
    # One attempt: in the first zone, where a route goes through several.
    zone = next((found[delivery_id].zone for delivery_id, _ in pairs if delivery_id in found), NO_ZONE)
    await count_attempts(connection, source, [(zone, ConflictKind.LOCK_TIMEOUT)])
    return [
        Conflict(
            delivery_id,
            courier_id,
            ConflictKind.LOCK_TIMEOUT,
            found[delivery_id].courier_id if delivery_id in found else None,
        )
        for delivery_id, courier_id in dict.fromkeys(pairs)
    ]
