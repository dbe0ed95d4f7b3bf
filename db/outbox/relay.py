"""What a relay does to the rows: take a shard, claim, settle, fail, park.

Every statement that ends something is fenced by the shard's epoch: a relay that was frozen and wakes up late, after
another took its shard, settles nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.outbox import AttemptOutcome, Endpoint, ErrorClass, Message, SinkKind, failure_fingerprint


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
    UPDATE outbox_claims claim SET positions = '{}',
        narrowed_to = CASE WHEN claim.narrowed_to IS NOT NULL AND claim.suspect_until >= (
            SELECT m.position FROM outbox_messages m WHERE m.shard = :shard AND m.endpoint_id = :endpoint_id
            ORDER BY m.position LIMIT 1) THEN claim.narrowed_to END
    WHERE shard = :shard AND endpoint_id = :endpoint_id AND epoch = :epoch AND positions <> '{}'
""")


async def drop_claim(connection: AsyncConnection, shard: int, endpoint_id: int, epoch: int) -> None:
    """Nothing is being sent any more: what was claimed and is still there was not begun.

    When all that was suspected of killing a relay is through, the window is as wide again as it was.
    """
    await connection.execute(_DROP_CLAIM, {"shard": shard, "endpoint_id": endpoint_id, "epoch": epoch})


async def take_shard(connection: AsyncConnection, shard: int, owner: str) -> int:
    """Become the shard's relay; answer the epoch that fences everyone before."""
    epoch: int | None = await connection.scalar(_TAKE, {"shard": shard, "owner": owner})
    if epoch is None:
        raise LookupError(f"there is no shard {shard}")
    await connection.execute(_LOG_INTERRUPTED, {"shard": shard, "endpoint_id": None})
    await connection.execute(_SUSPECT, {"shard": shard})
    await connection.execute(_DROP_CLAIMS, {"shard": shard})
    return epoch


async def abandon_claim(connection: AsyncConnection, shard: int, endpoint_id: int, epoch: int) -> None:
    """Who was sending stopped in the middle, the relay lives on: what was claimed and is still there is in doubt."""
    await connection.execute(_LOG_INTERRUPTED, {"shard": shard, "endpoint_id": endpoint_id})
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


EVENT_COLUMNS = """
    CAST(event.event_id AS text) AS event_id, event.event_type, event.subject,
    COALESCE(failure.fixed_data, event.data) AS data, event.occurred_at, CAST(event.fixes AS text) AS fixes,
    clock_timestamp() AS claimed_at
"""
"""As it goes out: `failure` is the message's row there, if it has one."""


async def ready_endpoints(connection: AsyncConnection, shard: int) -> list[Endpoint]:
    """Endpoints that can be sent to and have something ready; the rows of a broken endpoint are not even looked at."""
    return [endpoint_of(row) for row in await connection.execute(_READY_ENDPOINTS, {"shard": shard})]


# The limit comes before the join with the log: the other way round the log is read from its start.
_CLAIM = text(f"""
    WITH oldest AS (
        SELECT m.position, m.event_position, m.lane FROM outbox_messages m, outbox_shards s
        WHERE s.shard = :shard AND s.epoch = :epoch AND m.shard = :shard AND m.endpoint_id = :endpoint_id
        ORDER BY m.position LIMIT :look_ahead
    ), ready AS (
        SELECT position, event_position, lane
        FROM (SELECT *, row_number() OVER (PARTITION BY lane ORDER BY position) AS turn FROM oldest) o
        WHERE turn <= :lane_limit AND position <> ALL(CAST(:in_flight AS bigint[]))
            AND lane <> ALL(CAST(:full_lanes AS text[]))
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
    SELECT ready.position, ready.event_position, ready.lane, {EVENT_COLUMNS},
        COALESCE(failure.attempts, 0) AS attempts, failure.position IS NOT NULL AS failed_before,
        EXISTS (SELECT FROM outbox_failures f WHERE f.endpoint_id = :endpoint_id AND f.lane = ready.lane
            AND f.status IN ('RETRYING', 'FAILED')) AS lane_blocked
    FROM ready
    CROSS JOIN LATERAL (SELECT * FROM outbox_events e WHERE e.position = ready.event_position) event
    LEFT JOIN outbox_failures failure ON failure.endpoint_id = :endpoint_id AND failure.position = ready.position
    ORDER BY ready.position
""")


@dataclass(frozen=True)
class Claimed:
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
    lane_limit: int = 8
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
    return [Claimed(message_of(row, shard), row.failed_before, row.lane_blocked) for row in rows]


def message_of(row: Row[Any], shard: int) -> Message:
    """The message of a row that joins it with its event."""
    return Message(
        position=row.position,
        event_position=row.event_position,
        shard=shard,
        lane=row.lane,
        event_id=row.event_id,
        event_type=row.event_type,
        subject=row.subject,
        data=row.data,
        occurred_at=row.occurred_at,
        attempts=row.attempts,
        claimed_at=row.claimed_at,
        fixes=row.fixes,
    )


# The rows to delete are named by an array: joined with a set of unknown size, the whole table might be read for them.
_SETTLE = text("""
    WITH fence AS (
        UPDATE outbox_shards SET dispatched = dispatched + :count
        WHERE shard = :shard AND epoch = :epoch RETURNING shard
    ), gone AS (
        DELETE FROM outbox_messages m
        WHERE m.shard = :shard AND m.endpoint_id = :endpoint_id AND m.position = ANY(CAST(:positions AS bigint[]))
            AND EXISTS (SELECT FROM fence)
        RETURNING m.position
    ), mended AS (
        UPDATE outbox_failures f SET status = 'DELIVERED', next_attempt_at = NULL
        FROM fence WHERE f.endpoint_id = :endpoint_id AND f.position = ANY(CAST(:failed_before AS bigint[]))
    ), passed AS (
        UPDATE outbox_claims claim SET passed_lane = :lane, passed_at = now()
        FROM fence WHERE claim.shard = fence.shard AND claim.endpoint_id = :endpoint_id
    ), finished AS (
        INSERT INTO outbox_finished (position, endpoint_id, status, duration_ms)
        SELECT position, :endpoint_id, 'DELIVERED', sent.duration_ms
        FROM gone JOIN unnest(CAST(:positions AS bigint[]), CAST(:durations_ms AS float8[]))
            AS sent(position, duration_ms) USING (position)
    )
    SELECT count(*) FROM fence
""")


@dataclass(frozen=True)
class Delivered:
    """A message that its endpoint took, and how long that lasted."""

    claimed: Claimed
    duration_ms: float


async def settle(
    connection: AsyncConnection, shard: int, endpoint_id: int, epoch: int, delivered: Sequence[Delivered]
) -> None:
    """End the messages that were delivered. Raises StaleEpoch, having changed nothing."""
    parameters = {
        "shard": shard,
        "endpoint_id": endpoint_id,
        "epoch": epoch,
        "count": len(delivered),
        "positions": [each.claimed.message.position for each in delivered],
        "durations_ms": [each.duration_ms for each in delivered],
        "lane": delivered[-1].claimed.message.lane,
        "failed_before": [each.claimed.message.position for each in delivered if each.claimed.failed_before],
    }
    if not await connection.scalar(_SETTLE, parameters):
        raise StaleEpoch(shard)


_OTHERS_PASS = text("""
    SELECT EXISTS (SELECT FROM outbox_claims WHERE endpoint_id = :endpoint_id AND passed_lane <> :lane
        AND passed_at > now() - make_interval(secs => :seconds))
""")


async def others_pass(connection: AsyncConnection, endpoint_id: int, lane: str, seconds: float) -> bool:
    """Whether another lane's event passed at the endpoint within so many seconds, at any shard's relay."""
    parameters = {"endpoint_id": endpoint_id, "lane": lane, "seconds": seconds}
    return bool(await connection.scalar(_OTHERS_PASS, parameters))


_COUNT_ERROR = {
    error_class: text(f"""
        UPDATE outbox_shards SET errors_{error_class} = errors_{error_class} + 1,
            failed_transitions = failed_transitions + :failed
        WHERE shard = :shard AND (CAST(:epoch AS bigint) IS NULL OR epoch = :epoch)
    """)
    for error_class in ErrorClass
}


async def count_error(
    connection: AsyncConnection, shard: int, epoch: int | None, error_class: ErrorClass, *, failed: bool = False
) -> None:
    """Count a failed attempt (and whether the message became FAILED). With an epoch: raises StaleEpoch."""
    parameters = {"shard": shard, "epoch": epoch, "failed": int(failed)}
    if (await connection.execute(_COUNT_ERROR[error_class], parameters)).rowcount == 0:
        raise StaleEpoch(shard)


_LOG_ATTEMPT = text("""
    INSERT INTO outbox_attempts (endpoint_id, position, event_position, outcome, error_class, error)
    VALUES (:endpoint_id, :position, :event_position, :outcome, :error_class, :error)
""")


async def log_attempt(
    connection: AsyncConnection,
    endpoint_id: int,
    message: Message,
    error_class: ErrorClass,
    error: str,
    *,
    in_doubt: bool,
) -> None:
    """Log an attempt that did not deliver; `in_doubt`: as far as anybody knows."""
    attempt = {
        "endpoint_id": endpoint_id,
        "position": message.position,
        "event_position": message.event_position,
        "outcome": AttemptOutcome.IN_DOUBT if in_doubt else AttemptOutcome.FAILED,
        "error_class": error_class,
        "error": error,
    }
    await connection.execute(_LOG_ATTEMPT, attempt)


_FAIL = text("""
    WITH gone AS (
        DELETE FROM outbox_messages WHERE shard = :shard AND endpoint_id = :endpoint_id AND position = :position
        RETURNING position, event_position, lane
    )
    INSERT INTO outbox_failures (endpoint_id, position, event_position, shard, lane, event_type, status, attempts,
        error_class, last_error, fingerprint, next_attempt_at)
    SELECT :endpoint_id, position, event_position, :shard, lane, :event_type, :status, :attempts, :error_class, :error,
        :fingerprint, clock_timestamp() + make_interval(secs => :delay_seconds)
    FROM gone
    ON CONFLICT (endpoint_id, position) DO UPDATE SET status = excluded.status, attempts = excluded.attempts,
        error_class = excluded.error_class, last_error = excluded.last_error, fingerprint = excluded.fingerprint,
        failed_at = now(), next_attempt_at = excluded.next_attempt_at, workflow_started_at = NULL
""")


async def fail(
    connection: AsyncConnection,
    endpoint_id: int,
    epoch: int,
    message: Message,
    error_class: ErrorClass,
    error: str,
    delay_seconds: float | None,
    *,
    in_doubt: bool,
) -> None:
    """Take a message that failed for a reason of its own out of the way: RETRYING after the delay, FAILED without one.

    Its row blocks its lane. Raises StaleEpoch.
    """
    await count_error(connection, message.shard, epoch, error_class, failed=delay_seconds is None)
    await log_attempt(connection, endpoint_id, message, error_class, error, in_doubt=in_doubt)
    await take_aside(connection, endpoint_id, message, message.attempts + 1, error_class, error, delay_seconds)


async def take_aside(
    connection: AsyncConnection,
    endpoint_id: int,
    message: Message,
    attempts: int,
    error_class: ErrorClass,
    error: str,
    delay_seconds: float | None,
) -> None:
    """Move a ready message to the failing ones, after so many attempts."""
    await connection.execute(
        _FAIL,
        {
            "shard": message.shard,
            "endpoint_id": endpoint_id,
            "position": message.position,
            "event_type": message.event_type,
            "status": "FAILED" if delay_seconds is None else "RETRYING",
            "attempts": attempts,
            "error_class": error_class,
            "error": error,
            "fingerprint": failure_fingerprint(message.event_type, endpoint_id, error_class, error),
            "delay_seconds": delay_seconds,
        },
    )


# The failing message's row is share-locked: whoever ends it locks it first and then frees the lane, so that nothing is
# parked behind a message that is no longer there.
_PARK = text("""
    WITH blocked AS (
        SELECT lane FROM outbox_failures
        WHERE endpoint_id = :endpoint_id AND lane = ANY(CAST(:lanes AS text[])) AND status IN ('RETRYING', 'FAILED')
        ORDER BY lane FOR SHARE
    ), gone AS (
        DELETE FROM outbox_messages m USING blocked
        WHERE m.shard = :shard AND m.endpoint_id = :endpoint_id AND m.position = ANY(CAST(:positions AS bigint[]))
            AND m.lane = blocked.lane
        RETURNING m.position, m.event_position, m.lane
    )
    INSERT INTO outbox_parked (endpoint_id, position, event_position, shard, lane)
    SELECT :endpoint_id, position, event_position, :shard, lane FROM gone
""")


async def park(connection: AsyncConnection, shard: int, endpoint_id: int, messages: Sequence[Message]) -> None:
    """Put aside messages whose lane an earlier one blocks; those whose lane is free by now stay where they are."""
    parameters = {
        "shard": shard,
        "endpoint_id": endpoint_id,
        "lanes": sorted({message.lane for message in messages}),
        "positions": [message.position for message in messages],
    }
    await connection.execute(_PARK, parameters)
