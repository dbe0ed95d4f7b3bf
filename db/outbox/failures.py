"""Failing messages: their retries, and what an admin reads and does about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import announce
from db.ops import record_action
from db.outbox.breaker import close_breaker, open_breaker, take_probe
from db.outbox.relay import (
    ENDPOINT_COLUMNS,
    EVENT_COLUMNS,
    count_error,
    endpoint_of,
    log_attempt,
    message_of,
)
from db.outbox.write import EVENTS_CHANNEL
from domain.outbox import Endpoint, ErrorClass, Message, MessageStatus, message_id

# --- retries, for the message's own workflow

_LOST_SECONDS = 120.0
_WITHOUT_WORKFLOW = text("""
    SELECT endpoint_id, position, event_type, error_class FROM outbox_failures
    WHERE shard = :shard AND status = 'RETRYING' AND (workflow_started_at IS NULL
        OR GREATEST(workflow_started_at, next_attempt_at) < now() - make_interval(secs => :lost_seconds))
    ORDER BY position LIMIT :limit
""")
_WORKFLOW_STARTED = text("""
    UPDATE outbox_failures SET workflow_started_at = now() WHERE endpoint_id = :endpoint_id AND position = :position
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
    """Messages whose retries nobody has taken up: the row is the queue, so a crash before the start loses nothing.

    One whose try is long overdue has lost its workflow, or waits for its endpoint: starting that again does no harm.
    """
    parameters = {"shard": shard, "limit": limit, "lost_seconds": _LOST_SECONDS}
    rows = await connection.execute(_WITHOUT_WORKFLOW, parameters)
    return [FailingMessage(**row._mapping) for row in rows]


async def mark_workflow_started(connection: AsyncConnection, failing: FailingMessage) -> None:
    """The message's workflow runs."""
    parameters = {"endpoint_id": failing.endpoint_id, "position": failing.position}
    await connection.execute(_WORKFLOW_STARTED, parameters)


@dataclass(frozen=True)
class Retry:
    """What a retry is to do: send, or come back later, or nothing because the message's fate is decided."""

    status: MessageStatus
    attempts: int
    wait_seconds: float
    message: Message | None = None
    endpoint: Endpoint | None = None


_RETRY_STATE = text("""
    SELECT f.status, f.attempts, endpoint.enabled AND endpoint.disabled_reason IS NULL AS enabled,
        endpoint.open_until IS NOT NULL AS probing, endpoint.consecutive_failures,
        CAST(COALESCE(extract(epoch FROM GREATEST(f.next_attempt_at, endpoint.open_until) - clock_timestamp()), 0)
            AS float8) AS wait_seconds
    FROM outbox_failures f JOIN outbox_endpoints endpoint USING (endpoint_id)
    WHERE f.endpoint_id = :endpoint_id AND f.position = :position FOR NO KEY UPDATE OF f
""")
_BEGIN_RETRY = text(f"""
    UPDATE outbox_failures f SET attempts = f.attempts + 1
    FROM outbox_endpoints endpoint, outbox_events event
    WHERE f.endpoint_id = :endpoint_id AND f.position = :position
        AND endpoint.endpoint_id = f.endpoint_id AND event.position = f.event_position
    RETURNING f.position, f.event_position, f.lane, f.shard, f.attempts, {EVENT_COLUMNS}, {ENDPOINT_COLUMNS}
""")
_DISABLED_WAIT_SECONDS = 30.0
_PROBED_WAIT_SECONDS = 1.0
"""Somebody else tries the endpoint at this moment."""


async def begin_retry(connection: AsyncConnection, position: int, endpoint_id: int) -> Retry | None:
    """Count the attempt before it is made, if it is due and the endpoint can be sent to. None: the row is gone."""
    key = {"position": position, "endpoint_id": endpoint_id}
    state = (await connection.execute(_RETRY_STATE, key)).one_or_none()
    if state is None:
        return None
    wait_seconds = state.wait_seconds if state.enabled else _DISABLED_WAIT_SECONDS
    if state.status != MessageStatus.RETRYING or wait_seconds > 0:
        return Retry(MessageStatus(state.status), state.attempts, max(wait_seconds, 0.0))
    if state.probing and not await take_probe(connection, endpoint_id, state.consecutive_failures):
        return Retry(MessageStatus.RETRYING, state.attempts, _PROBED_WAIT_SECONDS)
    row = (await connection.execute(_BEGIN_RETRY, key)).one()
    return Retry(MessageStatus.RETRYING, row.attempts, 0.0, message_of(row, row.shard), endpoint_of(row))


_END_RETRY = text("""
    UPDATE outbox_failures SET status = :status, attempts = :attempts,
        error_class = COALESCE(:error_class, error_class), last_error = COALESCE(:error, last_error), failed_at = now(),
        next_attempt_at = clock_timestamp() + make_interval(secs => :delay_seconds)
    WHERE endpoint_id = :endpoint_id AND position = :position AND status = 'RETRYING' AND attempts = :counted
    RETURNING lane
""")
_FINISH = text("""
    INSERT INTO outbox_finished (position, endpoint_id, status) VALUES (:position, :endpoint_id, :status)
""")
_COUNT_DISPATCHED = text("UPDATE outbox_shards SET dispatched = dispatched + 1 WHERE shard = :shard")


async def retry_delivered(connection: AsyncConnection, message: Message, endpoint: Endpoint) -> None:
    """The retry passed: the message is DELIVERED and its lane goes on; a breaker that was open is closed."""
    endpoint_id = endpoint.endpoint_id
    if endpoint.probing:
        await close_breaker(connection, endpoint_id)
    if await _end_retry(connection, message, endpoint_id, MessageStatus.DELIVERED, message.attempts):
        finished = {"position": message.position, "endpoint_id": endpoint_id, "status": "DELIVERED"}
        await connection.execute(_FINISH, finished)
        await free_lane(connection, endpoint_id, message.lane)
        await connection.execute(_COUNT_DISPATCHED, {"shard": message.shard})


async def retry_failed(
    connection: AsyncConnection,
    message: Message,
    endpoint: Endpoint,
    error_class: ErrorClass,
    error: str,
    delay_seconds: float | None,
    *,
    gone: bool = False,
    retry_after_seconds: float = 0.0,
) -> None:
    """The retry failed too: RETRYING after the delay, FAILED without one.

    The endpoint's fault burns no attempt, and opens its breaker.
    """
    endpoint_id = endpoint.endpoint_id
    if error_class is ErrorClass.ENDPOINT:
        await open_breaker(connection, endpoint, error, gone=gone, retry_after_seconds=retry_after_seconds)
    elif endpoint.probing:
        await close_breaker(connection, endpoint_id)  # it answers, and found fault with the message alone
    status = MessageStatus.FAILED if delay_seconds is None else MessageStatus.RETRYING
    attempts = message.attempts - 1 if error_class is ErrorClass.ENDPOINT else message.attempts
    if await _end_retry(connection, message, endpoint_id, status, attempts, error_class, error, delay_seconds):
        await log_attempt(connection, endpoint_id, message.position, error_class, error)
        await count_error(connection, message.shard, None, error_class, failed=status is MessageStatus.FAILED)


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
    parameters = {
        "status": status,
        "attempts": attempts,
        "error_class": error_class,
        "error": error,
        "delay_seconds": delay_seconds,
        "endpoint_id": endpoint_id,
        "position": message.position,
        "counted": message.attempts,
    }
    return await connection.scalar(_END_RETRY, parameters) is not None


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


# --- what an admin does

_LOCK_FAILURE = text("""
    SELECT status, attempts, shard, lane, event_position FROM outbox_failures
    WHERE endpoint_id = :endpoint_id AND position = :position FOR UPDATE
""")
_SET_FAILURE = text("""
    UPDATE outbox_failures SET status = :status, attempts = :attempts, next_attempt_at = NULL
    WHERE endpoint_id = :endpoint_id AND position = :position
""")
_PUT_BACK = text("""
    INSERT INTO outbox_messages (shard, endpoint_id, position, event_position, lane)
    VALUES (:shard, :endpoint_id, :position, :event_position, :lane)
""")


class MessageMissing(LookupError):
    """No such message has ever failed."""


class MessageSettled(Exception):
    """The message's fate is decided already."""

    def __init__(self, status: MessageStatus) -> None:
        super().__init__(f"the message is {status}")
        self.status = status


async def replay(
    connection: AsyncConnection, position: int, endpoint_id: int, *, actor: str, reason: str | None
) -> MessageStatus:
    """Put a failing message, and the lane behind it, back among the ready ones. Again: nothing more happens."""
    failure = await _lock_failure(connection, position, endpoint_id)
    if failure.status == MessageStatus.PENDING:
        return MessageStatus.PENDING
    _refuse_settled(failure.status)
    key = {"position": position, "endpoint_id": endpoint_id}
    await connection.execute(_SET_FAILURE, {**key, "status": "PENDING", "attempts": 0})
    back = {"shard": failure.shard, "event_position": failure.event_position, "lane": failure.lane}
    await connection.execute(_PUT_BACK, {**key, **back})
    await free_lane(connection, endpoint_id, failure.lane)
    await _record(connection, "outbox.replay", key, failure, MessageStatus.PENDING, actor, reason)
    return MessageStatus.PENDING


async def ignore(
    connection: AsyncConnection, position: int, endpoint_id: int, *, actor: str, reason: str
) -> MessageStatus:
    """End a failing message undelivered; its lane goes on. Again: nothing more happens."""
    failure = await _lock_failure(connection, position, endpoint_id)
    if failure.status == MessageStatus.IGNORED:
        return MessageStatus.IGNORED
    _refuse_settled(failure.status)
    key = {"position": position, "endpoint_id": endpoint_id}
    await connection.execute(_SET_FAILURE, {**key, "status": "IGNORED", "attempts": failure.attempts})
    await connection.execute(_FINISH, {**key, "status": "IGNORED"})
    await free_lane(connection, endpoint_id, failure.lane)
    await _record(connection, "outbox.ignore", key, failure, MessageStatus.IGNORED, actor, reason)
    return MessageStatus.IGNORED


async def _lock_failure(connection: AsyncConnection, position: int, endpoint_id: int) -> Row[Any]:
    key = {"position": position, "endpoint_id": endpoint_id}
    failure = (await connection.execute(_LOCK_FAILURE, key)).one_or_none()
    if failure is None:
        raise MessageMissing
    return failure


def _refuse_settled(status: str) -> None:
    if status not in (MessageStatus.RETRYING, MessageStatus.FAILED):
        raise MessageSettled(MessageStatus(status))


async def _record(
    connection: AsyncConnection,
    action: str,
    key: dict[str, int],
    failure: Row[Any],
    status: MessageStatus,
    actor: str,
    reason: str | None,
) -> None:
    target = f"message:{message_id(key['position'], key['endpoint_id'])}"
    before = {"status": failure.status, "attempts": failure.attempts}
    await record_action(connection, actor, action, target, reason, before=before, after={"status": status})


# --- what an admin reads

_LIST = """
    SELECT f.position, f.endpoint_id, CAST(event.event_id AS text) AS event_id, f.event_type, event.subject,
        endpoint.name AS sink, f.status, f.attempts, f.last_error, f.error_class, f.failed_at
    FROM outbox_failures f
    JOIN outbox_events event ON event.position = f.event_position
    JOIN outbox_endpoints endpoint ON endpoint.endpoint_id = f.endpoint_id
    WHERE f.status = :status
"""
_FILTERS = {
    "event_type": " AND f.event_type = :event_type",
    "error_class": " AND f.error_class = :error_class",
    "sink": " AND endpoint.name = :sink",
}
_AFTER = " AND (f.failed_at, f.position, f.endpoint_id) < (:after_time, :after_position, :after_endpoint)"
_NEWEST = " ORDER BY f.failed_at DESC, f.position DESC, f.endpoint_id DESC LIMIT :limit"


async def list_failures(
    connection: AsyncConnection,
    status: MessageStatus,
    filters: dict[str, str],
    after: tuple[datetime, int, int] | None,
    limit: int,
) -> Sequence[Row[Any]]:
    """A page of messages that failed for reasons of their own, newest failure first."""
    statement, parameters = _LIST, {"status": status, "limit": limit, **filters}
    for name in filters:
        statement += _FILTERS[name]
    if after is not None:
        statement += _AFTER
        parameters |= dict(zip(("after_time", "after_position", "after_endpoint"), after, strict=True))
    return (await connection.execute(text(statement + _NEWEST), parameters)).all()


_EVENT = text("""
    SELECT position, CAST(event_id AS text) AS event_id, event_type, subject, data, occurred_at, lane, shard
    FROM outbox_events WHERE event_id = CAST(:event_id AS uuid)
""")
# A message is in exactly one of these places at a time; a failure's row stays after its end and knows the attempts.
_MESSAGES = text("""
    SELECT endpoint.endpoint_id, endpoint.name AS sink,
        COALESCE(finished.status, failure.status, 'PENDING') AS status, finished.finished_at
    FROM outbox_endpoints endpoint
    LEFT JOIN outbox_finished finished ON finished.endpoint_id = endpoint.endpoint_id AND finished.position = :position
    LEFT JOIN outbox_failures failure ON failure.endpoint_id = endpoint.endpoint_id AND failure.position = :position
    WHERE finished.position IS NOT NULL OR failure.position IS NOT NULL
        OR EXISTS (SELECT FROM outbox_messages m WHERE m.shard = :shard AND m.endpoint_id = endpoint.endpoint_id
            AND m.position = :position)
        OR EXISTS (SELECT FROM outbox_parked p WHERE p.endpoint_id = endpoint.endpoint_id AND p.position = :position)
    ORDER BY endpoint.endpoint_id
""")
_ATTEMPTS = text("""
    SELECT endpoint_id, at, outcome, error_class, error FROM outbox_attempts
    WHERE position = :position ORDER BY attempt_id
""")


async def get_event(
    connection: AsyncConnection, event_id: str
) -> tuple[Row[Any], Sequence[Row[Any]], Sequence[Row[Any]]] | None:
    """An event, its messages and the attempts that did not deliver them."""
    event = (await connection.execute(_EVENT, {"event_id": event_id})).one_or_none()
    if event is None:
        return None
    messages = await connection.execute(_MESSAGES, {"position": event.position, "shard": event.shard})
    attempts = await connection.execute(_ATTEMPTS, {"position": event.position})
    return event, messages.all(), attempts.all()
