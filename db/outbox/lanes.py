"""Moving what waits for a webhook into other lanes, bit by bit, after an admin changed which events need an order."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.outbox.retries import free_lane
from domain.outbox import SHARDS

BATCH = 5000
"""Of one transaction: nobody else waits for long."""
_FAILING_BATCH = 200
# Between them the ready ones of each shard: once those are moved, none is parked in a lane of before any more.
_FAILING, _PARKED = -1, SHARDS


@dataclass(frozen=True)
class Move:
    """How far a move is."""

    endpoint_id: int
    unordered_types: list[str]
    place: int = _FAILING
    """What fails, what is ready in this shard, what is parked."""
    after: int = 0


_STALE = text("""
    SELECT endpoint_id, unordered_types FROM outbox_endpoints WHERE name = :name AND kind = 'webhook' AND lanes_stale
""")


async def begin_move(connection: AsyncConnection, name: str) -> Move | None:
    """What a webhook's messages are to be moved by. None: they are in the lanes that it wants."""
    stale = (await connection.execute(_STALE, {"name": name})).one_or_none()
    return Move(stale.endpoint_id, stale.unordered_types) if stale else None


_RELEASE_FAILING = text("""
    UPDATE outbox_failures f SET lane = 'event:' || f.position
    FROM (SELECT endpoint_id, position, lane FROM outbox_failures
        WHERE endpoint_id = :endpoint_id AND status IN ('RETRYING', 'FAILED')
            AND event_type = ANY(CAST(:unordered_types AS text[])) AND lane <> 'event:' || position
        ORDER BY lane LIMIT :limit FOR UPDATE) before
    WHERE f.endpoint_id = before.endpoint_id AND f.position = before.position
    RETURNING before.lane
""")
# Events are looked up one by one and rows are named by an array: joined with a set of unknown size, whole tables might
# be read for them.
_RELEASE_PARKED = text("""
    WITH batch AS (
        SELECT position, event_position FROM outbox_parked
        WHERE endpoint_id = :endpoint_id AND position > :after ORDER BY position LIMIT :limit
    ), released AS (
        DELETE FROM outbox_parked WHERE endpoint_id = :endpoint_id AND position = ANY(ARRAY(
            SELECT batch.position FROM batch CROSS JOIN LATERAL (
                SELECT event_type FROM outbox_events WHERE position = batch.event_position OFFSET 0) event
            WHERE event.event_type = ANY(CAST(:unordered_types AS text[]))))
        RETURNING shard, endpoint_id, position, event_position
    ), ready AS (
        INSERT INTO outbox_messages (shard, endpoint_id, position, event_position, lane)
        SELECT shard, endpoint_id, position, event_position, 'event:' || position FROM released
    )
    SELECT max(position) FROM batch
""")
_MOVE_READY = text("""
    WITH batch AS (
        SELECT position, event_position, lane FROM outbox_messages
        WHERE shard = :shard AND endpoint_id = :endpoint_id AND position > :after ORDER BY position LIMIT :limit
    ), moved AS (
        UPDATE outbox_messages SET lane = CASE WHEN lane = 'event:' || position
            THEN (SELECT e.lane FROM outbox_events e WHERE e.position = event_position) ELSE 'event:' || position END
        WHERE shard = :shard AND endpoint_id = :endpoint_id AND position = ANY(ARRAY(
            SELECT batch.position FROM batch CROSS JOIN LATERAL (
                SELECT event_type FROM outbox_events WHERE position = batch.event_position OFFSET 0) event
            WHERE event.event_type = ANY(CAST(:unordered_types AS text[]))
                IS DISTINCT FROM (batch.lane = 'event:' || batch.position)))
    )
    SELECT max(position) FROM batch
""")
_END = text("""
    UPDATE outbox_endpoints SET lanes_stale = false
    WHERE endpoint_id = :endpoint_id AND unordered_types = CAST(:unordered_types AS text[])
""")
# Before all else, as the lock order has it. A change of the types waits until the batch is through. Not a shared lock:
# of two moves that have it, neither could end.
_HOLD = text("""
    SELECT true FROM outbox_endpoints
    WHERE endpoint_id = :endpoint_id AND unordered_types = CAST(:unordered_types AS text[]) FOR NO KEY UPDATE
""")


async def move_some(connection: AsyncConnection, move: Move) -> Move | None:
    """Move the next messages; answer how far that is, None when it is done, or is a later change's to do.

    Events that need no order any more leave their lanes, and what waits only for them goes on. Those that need one
    again go back to theirs; but one that fails already stays apart, for its lane may have another failing message.
    """
    here = {"endpoint_id": move.endpoint_id, "unordered_types": move.unordered_types}
    if not await connection.scalar(_HOLD, here):
        return None
    if move.place == _FAILING:
        lanes = (await connection.scalars(_RELEASE_FAILING, {**here, "limit": _FAILING_BATCH})).all()
        for lane in lanes:
            await free_lane(connection, move.endpoint_id, lane)
        return move if lanes else replace(move, place=move.place + 1)
    batch = {**here, "after": move.after, "limit": BATCH}
    if move.place == _PARKED:
        last = await connection.scalar(_RELEASE_PARKED, batch)
    else:
        last = await connection.scalar(_MOVE_READY, {**batch, "shard": move.place})
    if last is not None:
        return replace(move, after=last)
    if move.place < _PARKED:
        return replace(move, place=move.place + 1, after=0)
    await connection.execute(_END, here)
    return None
