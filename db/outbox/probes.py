"""What a relay tries an endpoint with whose breaker is due for a probe: lane after lane, each time another one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.outbox.breaker import take_probe
from db.outbox.relay import CLOCK, Claimed, StaleEpoch, message_columns, message_of
from db.outbox.settle import park_lanes
from domain.outbox import Endpoint

LOOK_AHEAD = 16_000
"""Lanes are looked for among so many of the oldest messages. When all is well, pumps look no further ahead either."""

# In the order of a hash of their names, which has nothing to do with their age: the oldest may all be poisoned. Only
# the first message of a lane may go, and whether one is the first only those before it can tell.
_CHOOSE = text(f"""
    WITH clock AS MATERIALIZED ({CLOCK}), oldest AS (
        SELECT position, event_position, lane FROM outbox_messages
        WHERE shard = :shard AND endpoint_id = :endpoint_id ORDER BY position LIMIT :look_ahead
    ), heads AS (
        SELECT DISTINCT ON (lane COLLATE "C") position, event_position, lane, hashtextextended(lane, 0) AS hash
        FROM oldest ORDER BY lane COLLATE "C", position
    ), choice AS (
        SELECT CAST(:shard AS smallint) AS shard, heads.*, blocked.lane IS NOT NULL AS lane_blocked
        FROM heads LEFT JOIN outbox_failures blocked ON blocked.endpoint_id = :endpoint_id
            AND blocked.lane = heads.lane AND blocked.status IN ('RETRYING', 'FAILED')
        ORDER BY blocked.lane IS NOT NULL, hash <= (SELECT c.probe_cursor FROM outbox_claims c
            WHERE c.shard = :shard AND c.endpoint_id = :endpoint_id AND c.probe_cursor IS NOT NULL), hash
        LIMIT 1
    )
    SELECT {message_columns("choice", "COALESCE(failure.attempts, 0)")}, choice.hash,
        failure.position IS NOT NULL AS failed_before, choice.lane_blocked,
        CASE WHEN choice.lane_blocked THEN ARRAY(SELECT lane FROM heads ORDER BY lane) END AS blocked_lanes,
        CASE WHEN choice.lane_blocked THEN (SELECT min(position) FROM heads) END AS first_blocked
    FROM choice CROSS JOIN clock JOIN outbox_events event ON event.position = choice.event_position
    LEFT JOIN outbox_failures failure
        ON failure.endpoint_id = :endpoint_id AND failure.position = choice.position
""")
_CLAIM = text("""
    INSERT INTO outbox_claims (shard, endpoint_id, epoch, positions, probe_cursor)
    SELECT :shard, :endpoint_id, epoch, ARRAY[CAST(:position AS bigint)], :cursor FROM outbox_shards
    WHERE shard = :shard AND epoch = :epoch
    ON CONFLICT (shard, endpoint_id) DO UPDATE
        SET epoch = excluded.epoch, positions = excluded.positions, probe_cursor = excluded.probe_cursor
    WHERE outbox_claims.epoch <= excluded.epoch
""")


@dataclass(frozen=True)
class Probe:
    """The one message that an endpoint is tried with."""

    claimed: Claimed
    until: datetime | None
    """How long the endpoint is the caller's to try. None: its lane, and every other, was blocked. Look again."""


async def begin_probe(connection: AsyncConnection, shard: int, endpoint: Endpoint, epoch: int) -> Probe | None:
    """Claim the first message of the next lane. None: somebody else tries the endpoint, or there is nothing to try.

    Lanes that a failing message blocks come last. Where there is no other, what waits in them is parked instead, so
    that others are among the oldest. Raises StaleEpoch.
    """
    here = {"shard": shard, "endpoint_id": endpoint.endpoint_id}
    row = (await connection.execute(_CHOOSE, {**here, "look_ahead": LOOK_AHEAD})).one_or_none()
    if row is None:
        return None
    claimed = Claimed(message_of(row), row.failed_before, row.lane_blocked)
    if claimed.lane_blocked:
        await park_lanes(connection, shard, endpoint.endpoint_id, row.blocked_lanes, row.first_blocked)
        return Probe(claimed, None)
    until = await take_probe(connection, endpoint.endpoint_id, endpoint.consecutive_failures)
    if until is None:
        return None
    claim = {**here, "epoch": epoch, "position": row.position, "cursor": row.hash}
    if (await connection.execute(_CLAIM, claim)).rowcount == 0:
        raise StaleEpoch(shard)
    return Probe(claimed, until)


# A probe may be of a message far ahead: were it suspected of the relay's death, all before it would go one by one.
_CLEAR = text("""
    UPDATE outbox_claims claim SET narrowed_to = NULL FROM outbox_endpoints endpoint, outbox_messages m
    WHERE claim.shard = :shard AND claim.epoch < :epoch AND claim.narrowed_to = 1
        AND endpoint.endpoint_id = claim.endpoint_id AND endpoint.open_until IS NOT NULL
        AND m.shard = claim.shard AND m.endpoint_id = claim.endpoint_id AND m.position = claim.suspect_until
        AND hashtextextended(m.lane, 0) = claim.probe_cursor
""")


async def clear_probes(connection: AsyncConnection, shard: int, epoch: int) -> None:
    """Let what a relay died with go on as wide as ever where that was a probe; how often in a row stays counted."""
    await connection.execute(_CLEAR, {"shard": shard, "epoch": epoch})
