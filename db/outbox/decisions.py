"""What an admin decides about failing messages: send again, send another payload, give up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.ops import record_action
from db.outbox.retries import IN_FLIGHT_SECONDS, end_open_attempt, finish, free_lane
from domain.ids import new_id
from domain.outbox import AttemptOutcome, MessageStatus, message_id, payload_problem

# Locked first and read then: a fix that was waited for has put another event there.
_LOCK_FAILURE = text("""
    SELECT FROM outbox_failures WHERE endpoint_id = :endpoint_id AND position = :position FOR UPDATE
""")
_FAILURE = text(f"""
    SELECT f.endpoint_id, f.position, f.status, f.attempts, f.shard, f.lane, f.event_position,
        {IN_FLIGHT_SECONDS} AS in_flight_seconds,
        CAST(event.event_id AS text) AS event_id, CAST(event.fixes AS text) AS fixes, event.data
    FROM outbox_failures f JOIN outbox_events event ON event.position = f.event_position
    WHERE f.endpoint_id = :endpoint_id AND f.position = :position
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


class AttemptInFlight(Exception):
    """The message is being sent at this moment: what can be done about it depends on how that ends."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the message is being sent, for {seconds:.0f} s more at most")
        self.seconds = seconds


class PayloadRefused(Exception):
    """The payload cannot take the place of the event's own; the message says why, in one sentence."""


async def replay(
    connection: AsyncConnection, position: int, endpoint_id: int, *, actor: str, reason: str | None
) -> MessageStatus:
    """Put a failing message, and the lane behind it, back among the ready ones. Again: nothing more happens.

    Raises MessageMissing, MessageSettled, AttemptInFlight.
    """
    failure = await lock_failure(connection, position, endpoint_id)
    if failure.status == MessageStatus.PENDING:
        return MessageStatus.PENDING
    _refuse_decided(failure)
    return await replay_locked(connection, failure, actor=actor, reason=reason)


async def replay_locked(
    connection: AsyncConnection, failure: Row[Any], *, actor: str, reason: str | None
) -> MessageStatus:
    """The same, of a failing message that the caller has locked."""
    await _put_back(connection, failure, failure.event_position)
    await _record(connection, "outbox.replay", failure, {"status": MessageStatus.PENDING}, actor, reason)
    return MessageStatus.PENDING


async def ignore(
    connection: AsyncConnection, position: int, endpoint_id: int, *, actor: str, reason: str
) -> MessageStatus:
    """End a failing message undelivered; its lane goes on. Again: nothing more happens.

    Raises MessageMissing, MessageSettled, AttemptInFlight.
    """
    failure = await lock_failure(connection, position, endpoint_id)
    if failure.status == MessageStatus.IGNORED:
        return MessageStatus.IGNORED
    _refuse_decided(failure)
    return await ignore_locked(connection, failure, actor=actor, reason=reason)


async def ignore_locked(connection: AsyncConnection, failure: Row[Any], *, actor: str, reason: str) -> MessageStatus:
    """The same, of a failing message that the caller has locked."""
    await _set(connection, failure, MessageStatus.IGNORED, failure.attempts)
    await finish(connection, failure.position, failure.endpoint_id, MessageStatus.IGNORED)
    await free_lane(connection, failure.endpoint_id, failure.lane)
    await _record(connection, "outbox.ignore", failure, {"status": MessageStatus.IGNORED}, actor, reason)
    return MessageStatus.IGNORED


@dataclass(frozen=True)
class Fixed:
    """A message after its fix: where it stands, and the event that it carries now."""

    status: MessageStatus
    event_id: str
    fixes: str | None
    """The event in whose place that one was made; None: the event kept its id."""


_FIXED_ALREADY = text("""
    SELECT COALESCE(f.fixed_data, CASE WHEN event.fixes IS NOT NULL THEN event.data END) = CAST(:payload AS jsonb)
    FROM outbox_failures f JOIN outbox_events event ON event.position = f.event_position
    WHERE f.endpoint_id = :endpoint_id AND f.position = :position
""")
_MAY_HAVE_PASSED = text(f"""
    SELECT EXISTS (SELECT FROM outbox_attempts WHERE position = :position AND endpoint_id = :endpoint_id
        AND event_position = :event_position AND outcome <> '{AttemptOutcome.FAILED}')
""")
_KEEP_ID = text("""
    UPDATE outbox_failures SET fixed_data = CAST(:payload AS jsonb)
    WHERE endpoint_id = :endpoint_id AND position = :position
""")
# It tells of the same moment, and travels in the same place.
_NEW_EVENT = text("""
    INSERT INTO outbox_events (event_id, event_type, subject, lane, shard, data, occurred_at, fixes)
    SELECT CAST(:event_id AS uuid), event_type, subject, lane, shard, CAST(:payload AS jsonb), occurred_at,
        COALESCE(fixes, event_id)
    FROM outbox_events WHERE position = :event_position
    RETURNING position, CAST(fixes AS text) AS fixes
""")
_CARRY = text("""
    UPDATE outbox_failures SET event_position = :event_position, fixed_data = NULL
    WHERE endpoint_id = :endpoint_id AND position = :position
""")


async def fix(
    connection: AsyncConnection,
    position: int,
    endpoint_id: int,
    payload: Mapping[str, Any],
    *,
    actor: str,
    reason: str,
) -> Fixed:
    """Put a failing message back with another payload, in its place in the lane; other endpoints keep the event's own.

    The event keeps its id if every attempt to send it surely failed. Else a receiver may know the id, and take the fix
    for a duplicate: a new event is made, which names the one that happened. The same payload again: nothing more
    happens, but a message that FAILED with it is sent again. Raises MessageMissing, MessageSettled, AttemptInFlight,
    PayloadRefused.
    """
    failure = await lock_failure(connection, position, endpoint_id)
    key = {"position": position, "endpoint_id": endpoint_id}
    values = {**key, "payload": json.dumps(payload)}
    carried = Fixed(MessageStatus(failure.status), failure.event_id, failure.fixes)
    already = bool(await connection.scalar(_FIXED_ALREADY, values))
    if already and failure.status not in (MessageStatus.FAILED, MessageStatus.IGNORED):
        return carried
    _refuse_decided(failure)
    if problem := payload_problem(failure.data, payload):
        raise PayloadRefused(problem)
    event_position = failure.event_position
    if not already:
        await end_open_attempt(connection, position, endpoint_id)
        if await connection.scalar(_MAY_HAVE_PASSED, {**key, "event_position": event_position}):
            event_id = new_id()
            new_event = {**values, "event_id": event_id, "event_position": event_position}
            new = (await connection.execute(_NEW_EVENT, new_event)).one()
            event_position = new.position
            await connection.execute(_CARRY, {**key, "event_position": event_position})
            carried = Fixed(carried.status, event_id, new.fixes)
        else:
            await connection.execute(_KEEP_ID, values)
    await _put_back(connection, failure, event_position)
    after = {"status": MessageStatus.PENDING, "eventId": carried.event_id, "payload": payload}
    await _record(connection, "outbox.fix", failure, after, actor, reason)
    return Fixed(MessageStatus.PENDING, carried.event_id, carried.fixes)


async def lock_failure(connection: AsyncConnection, position: int, endpoint_id: int) -> Row[Any]:
    """The failing message's row, locked. Raises MessageMissing."""
    key = {"position": position, "endpoint_id": endpoint_id}
    await connection.execute(_LOCK_FAILURE, key)
    failure = (await connection.execute(_FAILURE, key)).one_or_none()
    if failure is None:
        raise MessageMissing
    return failure


def _refuse_decided(failure: Row[Any]) -> None:
    """Nothing is decided about what is decided already, nor under the eyes of a try that is about to decide it."""
    if failure.status not in (MessageStatus.RETRYING, MessageStatus.FAILED):
        raise MessageSettled(MessageStatus(failure.status))
    if failure.in_flight_seconds > 0:
        raise AttemptInFlight(failure.in_flight_seconds)


async def _put_back(connection: AsyncConnection, failure: Row[Any], event_position: int) -> None:
    await _set(connection, failure, MessageStatus.PENDING, 0)
    back = {"endpoint_id": failure.endpoint_id, "position": failure.position, "event_position": event_position}
    await connection.execute(_PUT_BACK, {**back, "shard": failure.shard, "lane": failure.lane})
    await free_lane(connection, failure.endpoint_id, failure.lane)


async def _set(connection: AsyncConnection, failure: Row[Any], status: MessageStatus, attempts: int) -> None:
    await end_open_attempt(connection, failure.position, failure.endpoint_id)
    key = {"position": failure.position, "endpoint_id": failure.endpoint_id}
    await connection.execute(_SET_FAILURE, {**key, "status": status, "attempts": attempts})


async def _record(
    connection: AsyncConnection,
    action: str,
    failure: Row[Any],
    after: Mapping[str, Any],
    actor: str,
    reason: str | None,
) -> None:
    target = f"message:{message_id(failure.position, failure.endpoint_id)}"
    before = {"status": failure.status, "attempts": failure.attempts}
    await record_action(connection, actor, action, target, reason, before=before, after=after)
