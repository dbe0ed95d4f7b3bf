"""The retries of failing messages, for their own workflows; and the ends that such a message can come to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import announce
from db.outbox.breaker import close_breaker, open_breaker, take_probe
from db.outbox.probes import clear_probes
from db.outbox.relay import CLOCK, ENDPOINT_COLUMNS, endpoint_of, message_columns, message_of
from db.outbox.settle import count_error, found_out_alone, log_attempt, take_aside
from db.outbox.write import EVENTS_CHANNEL
from domain.outbox import (
    FAILURE_WORKFLOWS,
    INTERRUPTIONS,
    SHARDS,
    Endpoint,
    ErrorClass,
    Message,
    MessageStatus,
    failure_fingerprint,
    message_id,
    retry_delay_seconds,
)

INTERRUPTED_ERROR = "the worker ended while it was sending"
ATTEMPT_SECONDS = 35.0
"""No try by a workflow lasts longer: an e-mail may wait 20 s for a connection, and then 10 s for an answer."""
LEASE_SECONDS = ATTEMPT_SECONDS + 10.0
"""So long after its beginning a try counts as in flight, unless its end is recorded: nobody else sends or decides."""
IN_FLIGHT_SECONDS = f"""
    CASE WHEN f.status = 'RETRYING' AND f.attempt_began_at IS NOT NULL THEN CAST(GREATEST(0, extract(epoch FROM
        f.attempt_began_at + make_interval(secs => {LEASE_SECONDS}) - clock_timestamp())) AS float8) ELSE 0 END
"""

_SUSPECTS = text(f"""
    SELECT {message_columns("m", "0")}, m.endpoint_id
    FROM ({CLOCK}) clock CROSS JOIN outbox_claims claim
    JOIN outbox_messages m
        ON m.shard = claim.shard AND m.endpoint_id = claim.endpoint_id AND m.position = claim.suspect_until
    JOIN outbox_events event ON event.position = m.event_position
    LEFT JOIN outbox_failures failure ON failure.endpoint_id = m.endpoint_id AND failure.position = m.position
    WHERE claim.shard = :shard AND claim.epoch < :epoch AND claim.interruptions >= {INTERRUPTIONS}
        AND NOT EXISTS (SELECT FROM outbox_failures f WHERE f.endpoint_id = m.endpoint_id AND f.lane = m.lane
            AND f.status IN ('RETRYING', 'FAILED'))
""")
_ACQUIT = text("UPDATE outbox_claims SET interruptions = 0 WHERE shard = :shard AND endpoint_id = :endpoint_id")
_SUSPECT_ERROR = "relays died while they were sending it"


async def fail_suspects(connection: AsyncConnection, shard: int, epoch: int) -> None:
    """Leave messages with which relay after relay died to workflows of their own, whose tries are counted.

    The relay that has just taken the shard calls it, before it claims anything. Raises StaleEpoch.
    """
    await clear_probes(connection, shard, epoch)
    delay_seconds = retry_delay_seconds(ErrorClass.UNKNOWN, INTERRUPTIONS)
    for row in (await connection.execute(_SUSPECTS, {"shard": shard, "epoch": epoch})).all():
        await count_error(connection, shard, epoch, ErrorClass.UNKNOWN)
        await take_aside(
            connection,
            row.endpoint_id,
            message_of(row),
            INTERRUPTIONS,
            ErrorClass.UNKNOWN,
            _SUSPECT_ERROR,
            delay_seconds,
        )
        # It is out of the way; should an admin send it again, that begins anew.
        await connection.execute(_ACQUIT, {"shard": shard, "endpoint_id": row.endpoint_id})


_LOST_SECONDS = 120.0
_SOON_SECONDS = 10.0
"""What is due later needs no place yet. What failed for the first time is due sooner."""
_PLACES = FAILURE_WORKFLOWS // SHARDS
_WITHOUT_WORKFLOW = text("""
    (SELECT f.endpoint_id, f.position, f.event_type, f.error_class
        FROM outbox_endpoints endpoint CROSS JOIN LATERAL (
            SELECT *, row_number() OVER (ORDER BY hashtext(position || '-' || endpoint.consecutive_failures)) AS turn,
                row_number() OVER (ORDER BY position) AS place
            FROM (SELECT endpoint_id, position, event_type, error_class FROM outbox_failures
                WHERE shard = :shard AND endpoint_id = endpoint.endpoint_id AND status = 'RETRYING'
                    AND workflow_started_at IS NULL
                    AND COALESCE(next_attempt_at < now() + make_interval(secs => :soon_seconds), true)
                ORDER BY position LIMIT :limit) oldest
        ) f
        LEFT JOIN (SELECT endpoint_id, count(*) AS places FROM outbox_failures
            WHERE shard = :shard AND workflow_started_at IS NOT NULL GROUP BY endpoint_id) held
            ON held.endpoint_id = endpoint.endpoint_id
        WHERE endpoint.enabled AND endpoint.disabled_reason IS NULL
            AND (endpoint.open_until IS NULL OR endpoint.open_until <= now() AND f.turn = 1)
        ORDER BY COALESCE(held.places, 0) + f.place, f.position
        LIMIT GREATEST(0, LEAST(:limit, :places - (SELECT CAST(count(*) AS int) FROM outbox_failures
            WHERE shard = :shard AND workflow_started_at IS NOT NULL))))
    UNION ALL
    (SELECT endpoint_id, position, event_type, error_class FROM outbox_failures
        WHERE shard = :shard AND workflow_started_at IS NOT NULL
            AND GREATEST(workflow_started_at, next_attempt_at) < now() - make_interval(secs => :lost_seconds)
        ORDER BY position LIMIT :limit)
""")
_WORKFLOW_STARTED = text("""
    UPDATE outbox_failures SET workflow_started_at = now() WHERE endpoint_id = :endpoint_id AND position = :position
""")
_GIVE_PLACE_BACK = text("""
    UPDATE outbox_failures SET workflow_started_at = NULL WHERE endpoint_id = :endpoint_id AND position = :position
""")


@dataclass(frozen=True)
class FailingMessage:
    """A message that waits for its workflow to be started."""

    endpoint_id: int
    position: int
    event_type: str
    error_class: str

    @property
    def message_id(self) -> str:
        """The message's id."""
        return message_id(self.position, self.endpoint_id)


async def without_workflow(connection: AsyncConnection, shard: int, limit: int) -> list[FailingMessage]:
    """Messages whose retries nobody has taken up: the row is the queue, so a crash loses nothing.

    No more than the shard has places for, and first those of the endpoint that holds the fewest; of an endpoint that
    cannot be sent to none, and one, each time another, when it is due for a probe. One whose try is long overdue has
    lost its workflow: it has its place, and starting that again does no harm. Where an admin has decided it since, that
    gives the place back.
    """
    parameters = {"shard": shard, "limit": limit, "places": _PLACES, "lost_seconds": _LOST_SECONDS}
    parameters["soon_seconds"] = _SOON_SECONDS
    rows = await connection.execute(_WITHOUT_WORKFLOW, parameters)
    return [FailingMessage(**row._mapping) for row in rows]


async def mark_workflow_started(connection: AsyncConnection, failing: FailingMessage) -> None:
    """The message's workflow has a place, and is about to run."""
    parameters = {"endpoint_id": failing.endpoint_id, "position": failing.position}
    await connection.execute(_WORKFLOW_STARTED, parameters)


async def give_place_back(connection: AsyncConnection, failing: FailingMessage) -> None:
    """The message's workflow could not be started."""
    parameters = {"endpoint_id": failing.endpoint_id, "position": failing.position}
    await connection.execute(_GIVE_PLACE_BACK, parameters)


@dataclass(frozen=True)
class Retry:
    """What a retry is to do: send, or come back later, or nothing because the message's fate is decided."""

    status: MessageStatus
    attempts: int
    wait_seconds: float
    message: Message | None = None
    endpoint: Endpoint | None = None
    place_given_back: bool = False
    """The endpoint cannot be sent to: meanwhile others have the workflow's place, and the message waits as a row."""


_RETRY_STATE = text(f"""
    SELECT f.status, f.attempts, f.shard, f.event_type, f.attempt_began_at IS NOT NULL AS begun,
        {IN_FLIGHT_SECONDS} AS in_flight_seconds,
        f.workflow_started_at IS NOT NULL AS has_workflow,
        endpoint.enabled AND endpoint.disabled_reason IS NULL
            AND COALESCE(endpoint.open_until <= clock_timestamp(), true) AS reachable,
        endpoint.open_until IS NOT NULL AS probing, endpoint.consecutive_failures,
        endpoint.open_until IS NOT NULL AND EXISTS (SELECT FROM outbox_shards s JOIN outbox_messages m
            ON m.shard = s.shard WHERE m.endpoint_id = endpoint.endpoint_id) AS relays_probe,
        CAST(COALESCE(extract(epoch FROM f.next_attempt_at - clock_timestamp()), 0) AS float8) AS wait_seconds
    FROM outbox_failures f JOIN outbox_endpoints endpoint USING (endpoint_id)
    WHERE f.endpoint_id = :endpoint_id AND f.position = :position FOR NO KEY UPDATE OF f
""")
# Where an attempt's end was not seen the message may be given up, and that is counted.
_LOCK_SHARD_OF_BEGUN = text("""
    SELECT FROM outbox_shards WHERE shard = (SELECT shard FROM outbox_failures
        WHERE endpoint_id = :endpoint_id AND position = :position AND attempt_began_at IS NOT NULL)
    FOR NO KEY UPDATE
""")
_BEGIN_RETRY = text(f"""
    UPDATE outbox_failures failure SET attempts = failure.attempts + 1, attempt_began_at = to_timestamp(clock.seconds)
    FROM outbox_endpoints endpoint, outbox_events event, ({CLOCK}) clock
    WHERE failure.endpoint_id = :endpoint_id AND failure.position = :position
        AND endpoint.endpoint_id = failure.endpoint_id AND event.position = failure.event_position
    RETURNING {message_columns("failure", "failure.attempts")}, {ENDPOINT_COLUMNS}
""")
_PROBED_WAIT_SECONDS = 1.0
"""Somebody else tries the endpoint at this moment."""


async def begin_retry(connection: AsyncConnection, position: int, endpoint_id: int) -> Retry | None:
    """Count the attempt before it is made, if it is due and the endpoint can be sent to. None: the row is gone.

    While another attempt is in flight this one waits. An attempt is known by the moment at which it began. A breaker
    is probed by relays if they have something: what passes there says more than one that failed before.
    """
    key = {"position": position, "endpoint_id": endpoint_id}
    await connection.execute(_LOCK_SHARD_OF_BEGUN, key)
    state = (await connection.execute(_RETRY_STATE, key)).one_or_none()
    if state is None:
        return None
    if state.in_flight_seconds > 0:
        return Retry(MessageStatus(state.status), state.attempts, state.in_flight_seconds)
    if state.begun:  # and its end was never seen
        await end_open_attempt(connection, position, endpoint_id)
        if state.status == MessageStatus.RETRYING and retry_delay_seconds(ErrorClass.UNKNOWN, state.attempts) is None:
            await _give_up_interrupted(connection, state, key)
            return Retry(MessageStatus.FAILED, state.attempts, 0.0)
    if state.status != MessageStatus.RETRYING:
        if state.has_workflow:
            await connection.execute(_GIVE_PLACE_BACK, key)
        return Retry(MessageStatus(state.status), state.attempts, 0.0)
    if not state.reachable:
        await connection.execute(_GIVE_PLACE_BACK, key)
        return Retry(MessageStatus.RETRYING, state.attempts, 0.0, place_given_back=True)
    if state.wait_seconds > 0:
        return Retry(MessageStatus.RETRYING, state.attempts, state.wait_seconds)
    probe_until = None
    if state.probing:
        if not state.relays_probe:
            probe_until = await take_probe(connection, endpoint_id, state.consecutive_failures)
        if probe_until is None:
            return Retry(MessageStatus.RETRYING, state.attempts, _PROBED_WAIT_SECONDS)
    row = (await connection.execute(_BEGIN_RETRY, key)).one()
    endpoint = replace(endpoint_of(row), probe_until=probe_until)
    return Retry(MessageStatus.RETRYING, row.attempts, 0.0, message_of(row), endpoint)


# Every end of its tries gives the message's place to the next one.
_GIVE_UP = text("""
    UPDATE outbox_failures SET status = 'FAILED', error_class = :error_class, last_error = :error,
        fingerprint = :fingerprint, failed_at = now(), next_attempt_at = NULL, workflow_started_at = NULL
    WHERE endpoint_id = :endpoint_id AND position = :position
""")


async def _give_up_interrupted(connection: AsyncConnection, state: Row[Any], key: dict[str, int]) -> None:
    """Its last try was begun and never ended: whoever made it died, perhaps of it."""
    error_class = ErrorClass.UNKNOWN
    fingerprint = failure_fingerprint(state.event_type, key["endpoint_id"], error_class, INTERRUPTED_ERROR)
    values = {"error_class": error_class, "error": INTERRUPTED_ERROR, "fingerprint": fingerprint}
    await connection.execute(_GIVE_UP, {**key, **values})
    await count_error(connection, state.shard, None, error_class, failed=True)


_END_RETRY = text("""
    UPDATE outbox_failures SET status = :status, attempts = :attempts,
        error_class = COALESCE(:error_class, error_class), last_error = COALESCE(:error, last_error),
        fingerprint = COALESCE(:fingerprint, fingerprint), failed_at = now(), attempt_began_at = NULL,
        workflow_started_at = CASE WHEN :status = 'RETRYING' THEN workflow_started_at END,
        next_attempt_at = clock_timestamp() + make_interval(secs => :delay_seconds)
    WHERE endpoint_id = :endpoint_id AND position = :position AND status = 'RETRYING'
        AND attempt_began_at = to_timestamp(:began_at)
    RETURNING lane
""")
_LOCK_SHARD = text("SELECT FROM outbox_shards WHERE shard = :shard FOR NO KEY UPDATE")
_PASSED = text("""
    UPDATE outbox_claims SET passed_lane = :lane, passed_at = now() WHERE shard = :shard AND endpoint_id = :endpoint_id
""")
_COUNT_DISPATCHED = text("UPDATE outbox_shards SET dispatched = dispatched + 1 WHERE shard = :shard")


async def retry_delivered(connection: AsyncConnection, message: Message, endpoint: Endpoint) -> None:
    """The retry passed: the message is DELIVERED and its lane goes on; a breaker that was open is closed."""
    endpoint_id = endpoint.endpoint_id
    if endpoint.probe_until:
        await close_breaker(connection, endpoint_id, endpoint.probe_until)
    await connection.execute(_LOCK_SHARD, {"shard": message.shard})
    if await _end_retry(connection, message, endpoint_id, MessageStatus.DELIVERED, message.attempts):
        await finish(connection, message.position, endpoint_id, MessageStatus.DELIVERED)
        await free_lane(connection, endpoint_id, message.lane)
        await connection.execute(_COUNT_DISPATCHED, {"shard": message.shard})
        passed = {"shard": message.shard, "endpoint_id": endpoint_id, "lane": message.lane}
        await connection.execute(_PASSED, passed)


async def retry_failed(
    connection: AsyncConnection,
    message: Message,
    endpoint: Endpoint,
    error_class: ErrorClass,
    error: str,
    delay_seconds: float | None,
    *,
    in_doubt: bool,
    gone: bool = False,
    retry_after_seconds: float = 0.0,
) -> bool:
    """The retry failed too: RETRYING after the delay, FAILED without one. Answer whether its place was given back.

    The endpoint's fault burns no attempt, and opens its breaker. But one that was found to fail where others pass is no
    witness against it, nor are a few: if in doubt again, and nobody passed since, it waits by itself, as a row.
    """
    endpoint_id = endpoint.endpoint_id
    key = {"endpoint_id": endpoint_id, "position": message.position}
    alone = error_class is ErrorClass.ENDPOINT and in_doubt and not endpoint.probing
    alone = alone and await found_out_alone(connection, **key)
    if error_class is ErrorClass.ENDPOINT and not alone:
        await open_breaker(connection, endpoint, error, gone=gone, retry_after_seconds=retry_after_seconds)
    elif endpoint.probe_until:  # it answers, and found fault with the message alone
        await close_breaker(connection, endpoint_id, endpoint.probe_until)
    status = MessageStatus.FAILED if delay_seconds is None else MessageStatus.RETRYING
    attempts = message.attempts - 1 if error_class is ErrorClass.ENDPOINT else message.attempts
    told = ErrorClass.UNKNOWN if alone else error_class
    await connection.execute(_LOCK_SHARD, {"shard": message.shard})
    if await _end_retry(connection, message, endpoint_id, status, attempts, told, error, delay_seconds):
        await log_attempt(connection, endpoint_id, message, error_class, error, in_doubt=in_doubt)
        await count_error(connection, message.shard, None, error_class, failed=status is MessageStatus.FAILED)
        if alone:
            await connection.execute(_GIVE_PLACE_BACK, key)
    return alone


async def _end_retry(
    connection: AsyncConnection,
    message: Message,
    endpoint_id: int,
    status: MessageStatus,
    attempts: int,
    error_class: ErrorClass | None = None,
    error: str | None = None,
    delay_seconds: float | None = None,
) -> bool:
    """Whether the message was still being retried, and by this attempt."""
    fingerprint = None
    if error_class is not None and error is not None:
        fingerprint = failure_fingerprint(message.event_type, endpoint_id, error_class, error)
    parameters = {
        "status": status,
        "attempts": attempts,
        "error_class": error_class,
        "error": error,
        "fingerprint": fingerprint,
        "delay_seconds": delay_seconds,
        "endpoint_id": endpoint_id,
        "position": message.position,
        "began_at": message.claimed_at,
    }
    return await connection.scalar(_END_RETRY, parameters) is not None


# --- the ends

_END_OPEN_ATTEMPT = text("""
    WITH open AS (
        UPDATE outbox_failures SET attempt_began_at = NULL
        WHERE endpoint_id = :endpoint_id AND position = :position AND attempt_began_at IS NOT NULL
            AND COALESCE(attempt_began_at = to_timestamp(CAST(:began_at AS float8)), true)
        RETURNING endpoint_id, position, event_position
    )
    INSERT INTO outbox_attempts (endpoint_id, position, event_position, outcome, error)
    SELECT endpoint_id, position, event_position, 'interrupted', :error FROM open
""")
_FINISH = text("""
    INSERT INTO outbox_finished (position, endpoint_id, status) VALUES (:position, :endpoint_id, :status)
""")


async def end_open_attempt(
    connection: AsyncConnection, position: int, endpoint_id: int, began_at: float | None = None
) -> None:
    """A try that was begun and whose end nobody saw may have succeeded: log it, so that a fix knows.

    `began_at`: only the one that began then. Who made it may be late, and another one's be in flight.
    """
    parameters = {"position": position, "endpoint_id": endpoint_id, "began_at": began_at, "error": INTERRUPTED_ERROR}
    await connection.execute(_END_OPEN_ATTEMPT, parameters)


async def finish(connection: AsyncConnection, position: int, endpoint_id: int, status: MessageStatus) -> None:
    """The message has come to its end: DELIVERED or IGNORED."""
    await connection.execute(_FINISH, {"position": position, "endpoint_id": endpoint_id, "status": status})


_FREE_LANE = text("""
    WITH freed AS (
        DELETE FROM outbox_parked WHERE endpoint_id = :endpoint_id AND lane = :lane
        RETURNING shard, endpoint_id, position, event_position, lane
    )
    INSERT INTO outbox_messages (shard, endpoint_id, position, event_position, lane) SELECT * FROM freed
""")


async def free_lane(connection: AsyncConnection, endpoint_id: int, lane: str) -> None:
    """What waited behind the message is ready again. The caller has locked, and ended, the failing message."""
    announce(connection, EVENTS_CHANNEL)
    await connection.execute(_FREE_LANE, {"endpoint_id": endpoint_id, "lane": lane})
