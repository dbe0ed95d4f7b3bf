"""Bulk operations on failed messages: frozen when asked for, carried out bit by bit, each message once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.ops import record_action
from db.outbox.decisions import MessageMissing, ignore_locked, lock_failure, replay_locked
from domain.outbox import MessageStatus, ReplayAction, ReplayProgress, ReplayStatus

_BEGIN = text("""
    INSERT INTO outbox_replays (operation_id, action, filter, dry_run, status, actor, reason)
    VALUES (:operation_id, :action, CAST(:filter AS jsonb), :dry_run, 'RUNNING', :actor, :reason)
    RETURNING created_at
""")
FROZEN_AT_ONCE = 50_000
"""Of any number of messages, so that no statement takes long."""
# From the moment of the question back: what fails while this goes on is younger.
_FREEZE = text("""
    WITH chosen AS (
        SELECT f.position, f.endpoint_id, f.failed_at
        FROM outbox_failures f JOIN outbox_endpoints endpoint ON endpoint.endpoint_id = f.endpoint_id
        WHERE f.status = 'FAILED'
            AND (f.failed_at, f.position, f.endpoint_id) < (:before_time, :before_position, :before_endpoint)
            AND (CAST(:event_type AS text) IS NULL OR f.event_type = :event_type)
            AND (CAST(:error_class AS text) IS NULL OR f.error_class = :error_class)
            AND (CAST(:sink AS text) IS NULL OR endpoint.name = :sink)
            AND (CAST(:fingerprint AS text) IS NULL OR f.fingerprint = :fingerprint)
        ORDER BY f.failed_at DESC, f.position DESC, f.endpoint_id DESC LIMIT :limit
    ), frozen AS (
        INSERT INTO outbox_replay_items (operation_id, position, endpoint_id)
        SELECT :operation_id, position, endpoint_id FROM chosen
    )
    SELECT failed_at, position, endpoint_id, count(*) OVER () AS frozen FROM chosen
    ORDER BY failed_at, position, endpoint_id LIMIT 1
""")
_COUNT = text("""
    UPDATE outbox_replays SET total = :total,
        status = CASE WHEN dry_run OR :total = 0 THEN 'DONE' ELSE status END,
        finished_at = CASE WHEN dry_run OR :total = 0 THEN now() END
    WHERE operation_id = :operation_id RETURNING status
""")


async def begin(
    connection: AsyncConnection,
    operation_id: str,
    action: ReplayAction,
    filters: Mapping[str, str | None],
    *,
    dry_run: bool,
    actor: str,
    reason: str,
) -> ReplayStatus:
    """Write down what is asked for, and freeze the messages that are FAILED and chosen now.

    `filters`: event_type, error_class, sink and fingerprint, None where anything goes. Answers RUNNING when there is
    something to do; a dry run is DONE with that.
    """
    asked = {"action": action, "dry_run": dry_run, "filter": {name: each for name, each in filters.items() if each}}
    values = {"operation_id": operation_id, "actor": actor, "reason": reason}
    began_at = await connection.scalar(_BEGIN, {**values, **asked, "filter": json.dumps(asked["filter"])})
    total = await _freeze(connection, {"operation_id": operation_id, **filters}, began_at)
    status = await connection.scalar(_COUNT, {"operation_id": operation_id, "total": total})
    await _record(connection, "outbox.replays", operation_id, None, {**asked, "count": total}, actor, reason)
    return ReplayStatus(status)


async def _freeze(connection: AsyncConnection, chosen: Mapping[str, str | None], began_at: datetime) -> int:
    """Freeze the chosen messages that were FAILED by then; answer how many."""
    total = 0
    before = {"before_time": began_at, "before_position": 2**63 - 1, "before_endpoint": 2**31 - 1}
    while last := (await connection.execute(_FREEZE, {**chosen, **before, "limit": FROZEN_AT_ONCE})).one_or_none():
        total += last.frozen
        if last.frozen < FROZEN_AT_ONCE:
            break
        before = {
            "before_time": last.failed_at,
            "before_position": last.position,
            "before_endpoint": last.endpoint_id,
        }
    return total


_FAIL = text("""
    UPDATE outbox_replays SET status = 'FAILED', finished_at = now()
    WHERE operation_id = :operation_id AND status = 'RUNNING'
""")


async def fail(connection: AsyncConnection, operation_id: str) -> None:
    """It could not be started: ask for it again."""
    await connection.execute(_FAIL, {"operation_id": operation_id})


# --- carrying out

_LOCK = text("""
    SELECT operation_id, status, action, actor, reason, total, done, skipped FROM outbox_replays
    WHERE operation_id = :operation_id FOR UPDATE
""")
# A message is put back only where it can be sent: an endpoint that does not answer is not given a heap of them to choke
# on when it does. One whose breaker is due for a probe and has nothing to probe with gets the next few.
_CAN_BE_SENT = """
    (endpoint.enabled AND endpoint.disabled_reason IS NULL
        AND (endpoint.open_until IS NULL OR endpoint.open_until <= now() AND NOT EXISTS (
        SELECT FROM outbox_shards s JOIN outbox_messages m ON m.shard = s.shard
        WHERE m.endpoint_id = endpoint.endpoint_id)))
"""
_NEXT = text(f"""
    SELECT item.position, item.endpoint_id
    FROM outbox_replay_items item LEFT JOIN outbox_endpoints endpoint ON endpoint.endpoint_id = item.endpoint_id
    WHERE item.operation_id = :operation_id AND item.outcome IS NULL
        AND (:action = 'ignore' OR endpoint.endpoint_id IS NULL OR {_CAN_BE_SENT})
    ORDER BY item.position, item.endpoint_id LIMIT :limit
""")
_WAITS_FOR = text("""
    SELECT DISTINCT endpoint.name
    FROM outbox_replay_items item JOIN outbox_endpoints endpoint ON endpoint.endpoint_id = item.endpoint_id
    WHERE item.operation_id = :operation_id AND item.outcome IS NULL ORDER BY endpoint.name
""")
_MARK = text("""
    UPDATE outbox_replay_items SET outcome = :outcome
    WHERE operation_id = :operation_id AND position = :position AND endpoint_id = :endpoint_id
""")
_ADVANCE = text("""
    UPDATE outbox_replays o SET done = done + :done, skipped = skipped + :skipped,
        status = CASE WHEN over THEN 'DONE' ELSE status END, finished_at = CASE WHEN over THEN now() END
    FROM (SELECT NOT EXISTS (SELECT FROM outbox_replay_items
        WHERE operation_id = :operation_id AND outcome IS NULL) AS over) items
    WHERE o.operation_id = :operation_id
    RETURNING o.status, o.total, o.done, o.skipped
""")


class OperationMissing(LookupError):
    """There is no such operation."""


async def advance(connection: AsyncConnection, operation_id: str, limit: int) -> tuple[int, ReplayProgress]:
    """Decide the next few messages, each together with the mark that it is done; answer how many, and how far it is.

    Nothing is done unless the operation is RUNNING. Raises OperationMissing.
    """
    operation = await _lock(connection, operation_id)
    status = ReplayStatus(operation.status)
    if status is not ReplayStatus.RUNNING:
        return 0, ReplayProgress(status, operation.total, operation.done, operation.skipped)
    chosen = {"operation_id": operation_id, "action": operation.action, "limit": limit}
    items = (await connection.execute(_NEXT, chosen)).all()
    outcomes = [await _carry_out(connection, operation, item.position, item.endpoint_id) for item in items]
    moved = {outcome: outcomes.count(outcome) for outcome in ("done", "skipped")}
    row = (await connection.execute(_ADVANCE, {"operation_id": operation_id, **moved})).one()
    status = ReplayStatus(row.status)
    waits_for: list[str] = []
    if status is ReplayStatus.RUNNING and not items:
        waits_for = [each.name for each in await connection.execute(_WAITS_FOR, {"operation_id": operation_id})]
    return len(items), ReplayProgress(status, row.total, row.done, row.skipped, waits_for)


async def _carry_out(connection: AsyncConnection, operation: Row[Any], position: int, endpoint_id: int) -> str:
    """Decide one message as the operation says, if nobody else has by now; answer the item's outcome."""
    outcome = "skipped"
    try:
        failure = await lock_failure(connection, position, endpoint_id)
    except MessageMissing:  # its endpoint was deleted
        failure = None
    if failure is not None and failure.status == MessageStatus.FAILED:
        decide = replay_locked if operation.action == ReplayAction.REPLAY else ignore_locked
        await decide(connection, failure, actor=operation.actor, reason=operation.reason)
        outcome = "done"
    key = {"operation_id": operation.operation_id, "position": position, "endpoint_id": endpoint_id}
    await connection.execute(_MARK, {**key, "outcome": outcome})
    return outcome


async def _lock(connection: AsyncConnection, operation_id: str) -> Row[Any]:
    operation = (await connection.execute(_LOCK, {"operation_id": operation_id})).one_or_none()
    if operation is None:
        raise OperationMissing
    return operation


# --- pausing

_SET_STATUS = text("UPDATE outbox_replays SET status = :status WHERE operation_id = :operation_id")


class OperationOver(Exception):
    """The operation has come to its end."""

    def __init__(self, status: ReplayStatus) -> None:
        super().__init__(f"the operation is {status}")
        self.status = status


async def pause(connection: AsyncConnection, operation_id: str, *, actor: str, reason: str | None) -> None:
    """Decide no more messages, from this commit on. Again: nothing more happens.

    Raises OperationMissing, OperationOver.
    """
    await _turn(connection, operation_id, ReplayStatus.PAUSED, "outbox.replays.pause", actor, reason)


async def resume(connection: AsyncConnection, operation_id: str, *, actor: str, reason: str | None) -> None:
    """Go on. Again, also when it is DONE by then: nothing more happens. Raises OperationMissing, OperationOver."""
    await _turn(connection, operation_id, ReplayStatus.RUNNING, "outbox.replays.resume", actor, reason)


async def _turn(
    connection: AsyncConnection, operation_id: str, status: ReplayStatus, action: str, actor: str, reason: str | None
) -> None:
    operation = await _lock(connection, operation_id)
    if operation.status == status or (operation.status, status) == (ReplayStatus.DONE, ReplayStatus.RUNNING):
        return
    if operation.status not in (ReplayStatus.RUNNING, ReplayStatus.PAUSED):
        raise OperationOver(ReplayStatus(operation.status))
    await connection.execute(_SET_STATUS, {"operation_id": operation_id, "status": status})
    before = {"status": operation.status, "done": operation.done, "skipped": operation.skipped}
    await _record(connection, action, operation_id, before, {"status": status}, actor, reason)


async def _record(
    connection: AsyncConnection,
    action: str,
    operation_id: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any],
    actor: str,
    reason: str | None,
) -> None:
    await record_action(connection, actor, action, f"replays:{operation_id}", reason, before=before, after=after)


# --- reads

_SAMPLE = 5
_GET = text("SELECT * FROM outbox_replays WHERE operation_id = :operation_id")
_SAMPLE_ITEMS = text("""
    SELECT item.position, item.endpoint_id, f.event_type, event.subject, endpoint.name AS sink, f.last_error
    FROM (SELECT position, endpoint_id FROM outbox_replay_items
        WHERE operation_id = :operation_id ORDER BY position, endpoint_id LIMIT :limit) item
    JOIN outbox_failures f ON f.endpoint_id = item.endpoint_id AND f.position = item.position
    JOIN outbox_events event ON event.position = f.event_position
    JOIN outbox_endpoints endpoint ON endpoint.endpoint_id = item.endpoint_id
    ORDER BY item.position, item.endpoint_id
""")
_LIST = text("""
    SELECT * FROM outbox_replays
    WHERE CAST(:after_time AS timestamptz) IS NULL OR (created_at, operation_id) < (:after_time, :after_id)
    ORDER BY created_at DESC, operation_id DESC LIMIT :limit
""")


async def get(connection: AsyncConnection, operation_id: str) -> tuple[Row[Any], Sequence[Row[Any]]] | None:
    """An operation, and a few of its messages."""
    row = (await connection.execute(_GET, {"operation_id": operation_id})).one_or_none()
    if row is None:
        return None
    return row, (await connection.execute(_SAMPLE_ITEMS, {"operation_id": operation_id, "limit": _SAMPLE})).all()


async def list_operations(
    connection: AsyncConnection, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Row[Any]]:
    """A page of operations, newest first."""
    after_time, after_id = after if after is not None else (None, None)
    return (await connection.execute(_LIST, {"after_time": after_time, "after_id": after_id, "limit": limit})).all()
