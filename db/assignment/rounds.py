"""Rounds: how long the batch may wait, what a round looks at, and what it leaves to be read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.assignment.commit import Conflict

# Whoever was asked for a delivery once, or had it and declined, is not to be asked again.
_ASKED = """
    a.delivery_id = d.delivery_id AND (a.offered OR a.outcome = 'declined')
"""
_FREE_COURIERS = "FROM couriers c WHERE c.zone = :zone AND c.online AND c.load < c.capacity"
# What nobody who is free may carry must neither fill the batch nor hurry it. Where more are free than were asked, one
# of them may: only where so few are left do they have to be looked through.
_GIVABLE = f"""
    d.zone = :zone AND d.status = 'PENDING' AND NOT d.pinned
    AND ((SELECT count(*) {_FREE_COURIERS}) > (SELECT count(DISTINCT a.courier_id) FROM assignments a WHERE {_ASKED})
        OR EXISTS (SELECT {_FREE_COURIERS}
            AND NOT EXISTS (SELECT FROM assignments a WHERE {_ASKED} AND a.courier_id = c.courier_id)))
"""

# --- how long to wait

_HURRY = text(f"""
    SELECT
        (SELECT CAST(extract(epoch FROM max(offer_expires_at) - clock_timestamp()) AS float8) FROM deliveries
            WHERE zone = :zone AND status = 'OFFERED' AND offer_expires_at <= (
                SELECT min(offer_expires_at) + make_interval(secs => :together_seconds) FROM deliveries
                WHERE zone = :zone AND status = 'OFFERED')) AS seconds_to_deadline,
        (SELECT CAST(extract(epoch FROM min(d.promised_at) - clock_timestamp()) AS float8) FROM deliveries d
            WHERE {_GIVABLE}) AS seconds_to_promise
""")


@dataclass(frozen=True)
class Hurry:
    """What a zone's next round must not miss, in seconds from now; None where there is no such thing."""

    seconds_to_deadline: float | None
    """Of the last of those offers that end together with the one that ends first."""
    seconds_to_promise: float | None
    """Of the waiting delivery with the earliest promise, of those that somebody could take."""


async def read_hurry(connection: AsyncConnection, zone: str, together_seconds: float = 0.0) -> Hurry:
    """How urgent a zone is, by the database's clock; offers that end within so many seconds end together."""
    values = {"zone": zone, "together_seconds": together_seconds}
    return Hurry(**(await connection.execute(_HURRY, values)).one()._mapping)


# --- what a round looks at

# Rounds that run at once share the waiting deliveries out by their ids.
_WAITING = text(f"""
    SELECT d.delivery_id, d.pickup, d.dropoff,
        CAST(extract(epoch FROM d.promised_at - now()) AS float8) AS seconds_to_promise,
        CAST(extract(epoch FROM now() - d.created_at) AS float8) AS waiting_seconds,
        ARRAY(SELECT a.courier_id FROM assignments a WHERE {_ASKED}) AS not_by
    FROM deliveries d WHERE {_GIVABLE}
        AND mod(CAST(hashtext(d.delivery_id) AS bigint) + 2147483648, :parts) = :part
    ORDER BY d.created_at, d.delivery_id LIMIT :limit
""")
_FREE = text("""
    SELECT courier_id, lat, lng, capacity - load AS slots FROM couriers
    WHERE zone = :zone AND online AND load < capacity ORDER BY courier_id LIMIT :limit
""")
_MAX_COURIERS = 1000


async def round_inputs(
    connection: AsyncConnection, zone: str, max_batch: int, part: int, parts: int
) -> tuple[Sequence[Row[Any]], Sequence[Row[Any]]]:
    """One of `parts` disjoint shares of the zone's waiting deliveries, the oldest first, and its free couriers."""
    share = {"zone": zone, "limit": max_batch, "part": part, "parts": parts}
    waiting = (await connection.execute(_WAITING, share)).all()
    free = (await connection.execute(_FREE, {"zone": zone, "limit": _MAX_COURIERS})).all() if waiting else []
    return waiting, free


# --- what it leaves

_RECORD = text("""
    INSERT INTO assignment_rounds (round_id, zone, started_at, finished_at, inputs, deliveries, couriers, pairs,
        assigned, conflicts, losers)
    VALUES (:round_id, :zone, :started_at, clock_timestamp(), CAST(:inputs AS jsonb), :deliveries, :couriers,
        CAST(:pairs AS jsonb), :assigned, :conflicts, CAST(:losers AS jsonb))
""")


async def record_round(
    connection: AsyncConnection,
    round_id: str,
    zone: str,
    started_at: datetime,
    inputs: str,
    seen: tuple[int, int],
    pairs: Sequence[Mapping[str, Any]],
    losers: Sequence[Conflict],
) -> None:
    """Keep what a round saw (`inputs`, as JSON; so many deliveries and couriers), decided and lost."""
    deliveries, couriers = seen
    record = {
        "round_id": round_id,
        "zone": zone,
        "started_at": started_at,
        "inputs": inputs,
        "deliveries": deliveries,
        "couriers": couriers,
        "pairs": json.dumps(pairs),
        "assigned": len(pairs) - len(losers),
        "conflicts": len(losers),
        "losers": json.dumps([asdict(each) for each in losers]),
    }
    await connection.execute(_RECORD, record)


_SUMMARY = "round_id, zone, started_at, finished_at, deliveries, couriers, assigned, conflicts"
_LIST = text(f"""
    SELECT {_SUMMARY} FROM assignment_rounds
    WHERE CAST(:after_id AS text) IS NULL OR round_id < :after_id ORDER BY round_id DESC LIMIT :limit
""")
_LIST_OF_ZONE = text(f"""
    SELECT {_SUMMARY} FROM assignment_rounds
    WHERE zone = :zone AND (CAST(:after_id AS text) IS NULL OR round_id < :after_id) ORDER BY round_id DESC LIMIT :limit
""")
_GET = text(f"SELECT {_SUMMARY}, inputs, pairs, losers FROM assignment_rounds WHERE round_id = :round_id")


async def list_rounds(
    connection: AsyncConnection, zone: str | None, after: str | None, limit: int
) -> Sequence[Row[Any]]:
    """A page of rounds without what they saw, newest first."""
    if zone is None:
        return (await connection.execute(_LIST, {"after_id": after, "limit": limit})).all()
    return (await connection.execute(_LIST_OF_ZONE, {"zone": zone, "after_id": after, "limit": limit})).all()


async def get_round(connection: AsyncConnection, round_id: str) -> Row[Any] | None:
    """A round with everything that is kept of it."""
    return (await connection.execute(_GET, {"round_id": round_id})).one_or_none()
