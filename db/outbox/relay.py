"""What a relay takes: a shard, and from it the messages that it may send. How they end is in `settle`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.outbox import Endpoint, Message, SinkKind


class StaleEpoch(Exception):
    """Another relay has taken the shard."""


_TAKE = text("""
    UPDATE outbox_shards SET epoch = epoch + 1, owner = :owner, taken_at = now() WHERE shard = :shard RETURNING epoch
""")
# An attempt that nobody saw the end of may have succeeded: it is logged, so that a fix knows.
_LOG_INTERRUPTED = text("""
    INSERT INTO outbox_attempts (endpoint_id, position, event_position, outcome, error)
    SELECT m.endpoint_id, m.position, m.event_position, 'interrupted', 'the relay ended while it was sending'
    FROM outbox_claims claim JOIN outbox_messages m
        ON m.shard = claim.shard AND m.endpoint_id = claim.endpoint_id AND m.position = ANY(claim.positions)
    WHERE claim.shard = :shard AND (CAST(:endpoint_id AS int) IS NULL OR claim.endpoint_id = :endpoint_id)
        AND (CAST(:epoch AS bigint) IS NULL OR claim.epoch = :epoch)
""")
# One of them may have killed the relay. Each such death leaves an eighth of them to be sent at a time, until it is one.
_SUSPECT = text("""
    UPDATE outbox_claims claim SET positions = '{}', narrowed_to = GREATEST(1, suspects.count / 8),
        suspect_until = suspects.last, interruptions = CASE WHEN suspects.count > 1 THEN 0
            WHEN suspects.last = claim.suspect_until THEN claim.interruptions + 1 ELSE 1 END
    FROM (
        SELECT c.endpoint_id, CAST(count(*) AS int) AS count, max(m.position) AS last
        FROM outbox_claims c JOIN outbox_messages m
            ON m.shard = c.shard AND m.endpoint_id = c.endpoint_id AND m.position = ANY(c.positions)
        WHERE c.shard = :shard GROUP BY c.endpoint_id
    ) suspects
    WHERE claim.shard = :shard AND claim.endpoint_id = suspects.endpoint_id
""")
_DROP_CLAIMS = text("UPDATE outbox_claims SET positions = '{}' WHERE shard = :shard AND positions <> '{}'")


_DROP_CLAIM = text("""
    UPDATE outbox_claims claim SET positions = '{}', interruptions = 0,
        narrowed_to = CASE WHEN claim.narrowed_to IS NOT NULL AND claim.suspect_until >= (
            SELECT m.position FROM outbox_messages m WHERE m.shard = :shard AND m.endpoint_id = :endpoint_id
            ORDER BY m.position LIMIT 1) THEN claim.narrowed_to END
    WHERE shard = :shard AND endpoint_id = :endpoint_id AND epoch = :epoch AND positions <> '{}'
""")


async def drop_claim(connection: AsyncConnection, shard: int, endpoint_id: int, epoch: int) -> None:
    """Nothing is being sent any more: what was claimed and is still there was not begun.

    When all that was suspected of killing a relay is through, the window is as wide again as it was. A message that
    was sent alone did not kill this one: the relays that died with it are no longer in a row.
    """
    await connection.execute(_DROP_CLAIM, {"shard": shard, "endpoint_id": endpoint_id, "epoch": epoch})


async def take_shard(connection: AsyncConnection, shard: int, owner: str) -> int:
    """Become the shard's relay; answer the epoch that fences everyone before."""
    epoch: int | None = await connection.scalar(_TAKE, {"shard": shard, "owner": owner})
    if epoch is None:
        raise LookupError(f"there is no shard {shard}")
    await connection.execute(_LOG_INTERRUPTED, {"shard": shard, "endpoint_id": None, "epoch": None})
    await connection.execute(_SUSPECT, {"shard": shard})
    await connection.execute(_DROP_CLAIMS, {"shard": shard})
    return epoch


async def abandon_claim(connection: AsyncConnection, shard: int, endpoint_id: int, epoch: int) -> None:
    """Who was sending stopped in the middle, the relay lives on: what was claimed and is still there is in doubt."""
    await connection.execute(_LOG_INTERRUPTED, {"shard": shard, "endpoint_id": endpoint_id, "epoch": epoch})
    await drop_claim(connection, shard, endpoint_id, epoch)


_EPOCH = text("SELECT epoch FROM outbox_shards WHERE shard = :shard")


async def check_epoch(connection: AsyncConnection, shard: int, epoch: int) -> None:
    """Raise StaleEpoch when another relay has taken the shard: one that claims nothing would never notice."""
    if await connection.scalar(_EPOCH, {"shard": shard}) != epoch:
        raise StaleEpoch(shard)


ENDPOINT_COLUMNS = """
    endpoint.endpoint_id, endpoint.name, endpoint.kind, endpoint.url, endpoint.secret,
    CASE WHEN endpoint.previous_secret_until > now() THEN endpoint.previous_secret END AS previous_secret,
    endpoint.consecutive_failures, endpoint.open_until IS NOT NULL AS probing,
    endpoint.reachable_since > endpoint.created_at AND endpoint.reachable_since > now() - interval '1 minute'
        AS recovering
"""
_READY_ENDPOINTS = text(f"""
    SELECT {ENDPOINT_COLUMNS} FROM outbox_endpoints endpoint
    WHERE endpoint.enabled AND endpoint.disabled_reason IS NULL
        AND (endpoint.open_until IS NULL OR endpoint.open_until <= now())
        AND EXISTS (SELECT FROM outbox_messages m
            WHERE m.shard = :shard AND m.endpoint_id = endpoint.endpoint_id)
""")


def endpoint_of(row: Row[Any]) -> Endpoint:
    """The endpoint of a row that selected its columns."""
    secrets = tuple(secret for secret in (row.secret, row.previous_secret) if secret)
    return Endpoint(
        endpoint_id=row.endpoint_id,
        name=row.name,
        kind=SinkKind(row.kind),
        url=row.url,
        secrets=secrets,
        consecutive_failures=row.consecutive_failures,
        probing=row.probing,
        recovering=row.recovering,
    )


CLOCK = "SELECT CAST(extract(epoch FROM clock_timestamp()) AS float8) AS seconds"


def message_columns(place: str, attempts: str) -> str:
    """What `message_of` reads, first in a SELECT: `place` has the message's row, `event` its event, `clock` CLOCK.

    `failure` is the message's row among the failing ones, if it has one; a payload that was fixed there goes out.
    """
    return f"""
        {place}.shard, {place}.position, {place}.event_position, {place}.lane, CAST(event.event_id AS text) AS event_id,
        event.event_type, event.subject, CAST(COALESCE(failure.fixed_data, event.data) AS text) AS payload,
        event.occurred_at, {attempts} AS attempts,
        clock.seconds AS claimed_at, CAST(event.fixes AS text) AS fixes
    """


def message_of(row: Row[Any]) -> Message:
    """The message of a row that begins with `message_columns`."""
    return Message._make(row[: len(Message._fields)])


async def ready_endpoints(connection: AsyncConnection, shard: int) -> list[Endpoint]:
    """Endpoints that can be sent to and have something ready; the rows of a broken endpoint are not even looked at."""
    return [endpoint_of(row) for row in await connection.execute(_READY_ENDPOINTS, {"shard": shard})]


# The limit comes before the join with the log: the other way round the log is read from its start.
_CLAIM = text(f"""
    WITH clock AS MATERIALIZED ({CLOCK}), oldest AS (
        SELECT m.shard, m.position, m.event_position, m.lane FROM outbox_messages m
        WHERE m.shard = :shard AND m.endpoint_id = :endpoint_id
            AND EXISTS (SELECT FROM outbox_shards s WHERE s.shard = :shard AND s.epoch = :epoch)
        ORDER BY m.position LIMIT :look_ahead
    ), ready AS (
        SELECT shard, position, event_position, lane
        FROM (SELECT *, row_number() OVER (PARTITION BY lane COLLATE "C" ORDER BY position) AS turn FROM oldest) o
        WHERE turn <= :lane_limit AND position NOT IN (SELECT unnest(CAST(:in_flight AS bigint[])))
            AND lane NOT IN (SELECT unnest(CAST(:full_lanes AS text[])))
        ORDER BY position LIMIT LEAST(CAST(:limit AS int), (
            SELECT GREATEST(0, c.narrowed_to - cardinality(CAST(:in_flight AS bigint[]))) FROM outbox_claims c
            WHERE c.shard = :shard AND c.endpoint_id = :endpoint_id AND c.narrowed_to IS NOT NULL
                AND c.suspect_until >= (SELECT m.position FROM outbox_messages m
                    WHERE m.shard = :shard AND m.endpoint_id = :endpoint_id ORDER BY m.position LIMIT 1)))
    ), claim AS (
        INSERT INTO outbox_claims (shard, endpoint_id, epoch, positions)
        SELECT :shard, :endpoint_id, :epoch, CAST(:in_flight AS bigint[]) || array_agg(position) FROM ready
        HAVING count(*) > 0
        ON CONFLICT (shard, endpoint_id) DO UPDATE SET epoch = excluded.epoch, positions = excluded.positions
        WHERE outbox_claims.epoch <= excluded.epoch
    )
    SELECT {message_columns("ready", "COALESCE(failure.attempts, 0)")}, failure.position IS NOT NULL AS failed_before,
        EXISTS (SELECT FROM outbox_failures f WHERE f.endpoint_id = :endpoint_id AND f.lane = ready.lane
            AND f.status IN ('RETRYING', 'FAILED')) AS lane_blocked
    FROM ready
    CROSS JOIN LATERAL (SELECT * FROM outbox_events e WHERE e.position = ready.event_position) event
    CROSS JOIN clock
    LEFT JOIN LATERAL (SELECT * FROM outbox_failures f
        WHERE f.endpoint_id = :endpoint_id AND f.position = ready.position OFFSET 0) failure ON true
    ORDER BY ready.position
""")


class Claimed(NamedTuple):
    """A message that a relay may send, and what it must know of it."""

    message: Message
    failed_before: bool
    lane_blocked: bool
    """An earlier message of its lane is failing: this one is to be parked."""


@dataclass(frozen=True)
class Window:
    """What a pump has on its hands, and how much more it takes."""

    in_flight: Sequence[int] = ()
    """Positions that are claimed already."""
    full_lanes: Sequence[str] = ()
    """Lanes that have enough in flight."""
    lane_limit: int = 16
    limit: int = 200
    look_ahead: int = 2000
    """How many of the oldest messages it looks through."""


async def claim(connection: AsyncConnection, shard: int, endpoint_id: int, epoch: int, window: Window) -> list[Claimed]:
    """Claim the next ready messages of an endpoint, beside those in flight; record them before anything is sent."""
    parameters = {
        "shard": shard,
        "endpoint_id": endpoint_id,
        "epoch": epoch,
        "in_flight": list(window.in_flight),
        "full_lanes": list(window.full_lanes),
        "lane_limit": window.lane_limit,
        "limit": window.limit,
        "look_ahead": window.look_ahead,
    }
    rows = await connection.execute(_CLAIM, parameters)
    return [Claimed(message_of(row), row[-2], row[-1]) for row in rows.all()]
