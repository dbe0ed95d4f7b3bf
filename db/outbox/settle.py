"""How messages end for a relay: delivered, failed, or parked behind one that failed.

Every statement that ends something is fenced by the shard's epoch: a relay that was frozen and wakes up late, after
another took its shard, settles nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.outbox.relay import Claimed, StaleEpoch
from domain.outbox import AttemptOutcome, ErrorClass, Message, failure_fingerprint

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


class Delivered(NamedTuple):
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


SUSPECT_LANES = 5
"""So many lanes failing in doubt one after the other, and nothing passing between, are the endpoint's fault."""
_JUST_NOW_SECONDS = 60.0
"""When a pass is so recent, many may have failed since all the same: each of them did so before it too."""
_STILL_FAILING = f"""
    (SELECT count(*) FROM (SELECT FROM outbox_failures
        WHERE status = 'RETRYING' AND endpoint_id = :endpoint_id AND position <> :position AND error_class = 'unknown'
            AND failed_at > (SELECT max(passed_at) FROM outbox_claims WHERE endpoint_id = :endpoint_id)
        LIMIT {SUSPECT_LANES}) still_failing)
"""
_OTHERS_PASS = text(f"""
    SELECT EXISTS (SELECT FROM outbox_claims WHERE endpoint_id = :endpoint_id AND passed_lane <> :lane
        AND (passed_at > now() - make_interval(secs => :seconds)
            OR passed_at > (SELECT at FROM outbox_attempts
                    WHERE position = :position AND endpoint_id = :endpoint_id AND outcome <> 'interrupted'
                    ORDER BY attempt_id DESC LIMIT 1)
                AND (passed_at > now() - make_interval(secs => {_JUST_NOW_SECONDS})
                    OR CAST(:alike AS int) + {_STILL_FAILING} < {SUSPECT_LANES})))
""")


async def others_pass(
    connection: AsyncConnection, endpoint_id: int, message: Message, seconds: float, alike: int = 1
) -> bool:
    """Whether another lane's event passed at the endpoint, at any shard's relay, since this message last failed there.

    Or within so many seconds: just before it failed, which it may do for the first time. `alike`: the messages that the
    caller has in hand and that fail like this one, itself among them. Where these and those that were found out since
    anything passed are many, a pass of long ago says nothing about the endpoint of today.
    """
    place = {"endpoint_id": endpoint_id, "lane": message.lane, "position": message.position}
    return bool(await connection.scalar(_OTHERS_PASS, {**place, "seconds": seconds, "alike": alike}))


_FOUND_OUT_ALONE = text(f"""
    SELECT error_class = 'unknown' AND {_STILL_FAILING} + 1 < {SUSPECT_LANES}
    FROM outbox_failures WHERE endpoint_id = :endpoint_id AND position = :position
""")


async def found_out_alone(connection: AsyncConnection, endpoint_id: int, position: int) -> bool:
    """Whether a failing message was found to fail where others pass, and no more than a few do so since one passed."""
    key = {"endpoint_id": endpoint_id, "position": position}
    return bool(await connection.scalar(_FOUND_OUT_ALONE, key))


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
        lane = excluded.lane, error_class = excluded.error_class, last_error = excluded.last_error,
        fingerprint = excluded.fingerprint, failed_at = now(), next_attempt_at = excluded.next_attempt_at,
        workflow_started_at = NULL
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


_PARKED_AT_ONCE = 4000
# The failing message's row is share-locked: whoever ends it locks it first and then frees the lane, so that nothing is
# parked behind a message that is no longer there. What else waits in the lane goes with them, as far as it is among the
# next so many: taken a claim's few at a time, a long lane would hold up what waits behind it.
_PARK = text(f"""
    WITH blocked AS (
        SELECT lane FROM outbox_failures
        WHERE endpoint_id = :endpoint_id AND lane = ANY(CAST(:lanes AS text[])) AND status IN ('RETRYING', 'FAILED')
        ORDER BY lane FOR SHARE
    ), gone AS (
        DELETE FROM outbox_messages m
        WHERE m.shard = :shard AND m.endpoint_id = :endpoint_id AND m.position = ANY(ARRAY(
            SELECT waiting.position FROM (
                SELECT position, lane FROM outbox_messages
                WHERE shard = :shard AND endpoint_id = :endpoint_id AND position >= :first
                ORDER BY position LIMIT {_PARKED_AT_ONCE}
            ) waiting JOIN blocked ON blocked.lane = waiting.lane))
        RETURNING m.position, m.event_position, m.lane
    )
    INSERT INTO outbox_parked (endpoint_id, position, event_position, shard, lane)
    SELECT :endpoint_id, position, event_position, :shard, lane FROM gone
""")


async def park(connection: AsyncConnection, shard: int, endpoint_id: int, messages: Sequence[Message]) -> None:
    """Put messages aside whose lane an earlier one blocks, and more of the lane; where it is free by now, they stay."""
    lanes = sorted({message.lane for message in messages})
    await park_lanes(connection, shard, endpoint_id, lanes, min((message.position for message in messages), default=0))


async def park_lanes(
    connection: AsyncConnection, shard: int, endpoint_id: int, lanes: Sequence[str], first: int
) -> None:
    """Put aside what waits in blocked lanes, from a position on: a few thousand messages further, and no more."""
    parameters = {"shard": shard, "endpoint_id": endpoint_id, "lanes": lanes, "first": first}
    await connection.execute(_PARK, parameters)
