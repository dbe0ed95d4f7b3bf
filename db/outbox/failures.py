"""What an admin reads of failing messages, and of events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.outbox import MessageStatus

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
    "fingerprint": " AND f.fingerprint = :fingerprint",
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


_GROUPS = """
    WITH page AS (
        SELECT fingerprint, count(*) AS total, min(failed_at) AS first_failed_at, max(failed_at) AS last_failed_at
        FROM outbox_failures WHERE status = :status GROUP BY fingerprint
"""
_GROUPS_AFTER = " HAVING (max(failed_at), fingerprint) < (:after_time, :after_fingerprint)"
# The last failure speaks for its group.
_GROUPS_NEWEST = """
        ORDER BY last_failed_at DESC, fingerprint DESC LIMIT :limit
    )
    SELECT page.*, newest.position, newest.endpoint_id, newest.event_type, newest.error_class, newest.last_error,
        endpoint.name AS sink
    FROM page CROSS JOIN LATERAL (
        SELECT * FROM outbox_failures f WHERE f.status = :status AND f.fingerprint = page.fingerprint
        ORDER BY f.failed_at DESC LIMIT 1
    ) newest JOIN outbox_endpoints endpoint ON endpoint.endpoint_id = newest.endpoint_id
    ORDER BY page.last_failed_at DESC, page.fingerprint DESC
"""


async def list_groups(
    connection: AsyncConnection, status: MessageStatus, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Row[Any]]:
    """A page of groups of messages that failed in the same way, the one with the newest failure first."""
    statement, parameters = _GROUPS, {"status": status, "limit": limit}
    if after is not None:
        statement += _GROUPS_AFTER
        parameters |= {"after_time": after[0], "after_fingerprint": after[1]}
    return (await connection.execute(text(statement + _GROUPS_NEWEST), parameters)).all()


# A message keeps its place in the lane, that of the event it was made for: a fix puts another event there.
_EVENT = text("""
    SELECT e.position, CAST(e.event_id AS text) AS event_id, e.event_type, e.subject, e.data, e.occurred_at, e.shard,
        CAST(e.fixes AS text) AS fixes, COALESCE(original.position, e.position) AS place
    FROM outbox_events e LEFT JOIN outbox_events original ON original.event_id = e.fixes
    WHERE e.event_id = CAST(:event_id AS uuid)
""")
# A message is in exactly one of these places at a time; a failure's row stays after its end and knows the attempts.
# An event that fixes another one has the messages that it was sent for.
_MESSAGES = text("""
    SELECT endpoint.endpoint_id, endpoint.name AS sink,
        COALESCE(finished.status, failure.status, 'PENDING') AS status, finished.finished_at,
        CASE WHEN failure.event_position = :event_position THEN failure.fixed_data END AS fixed_data,
        CASE WHEN failure.event_position <> :event_position THEN (SELECT CAST(event_id AS text) FROM outbox_events
            WHERE position = failure.event_position) END AS fixed_by
    FROM outbox_endpoints endpoint
    LEFT JOIN outbox_finished finished ON finished.endpoint_id = endpoint.endpoint_id AND finished.position = :position
    LEFT JOIN outbox_failures failure ON failure.endpoint_id = endpoint.endpoint_id AND failure.position = :position
    WHERE (finished.position IS NOT NULL OR failure.position IS NOT NULL
        OR EXISTS (SELECT FROM outbox_messages m WHERE m.shard = :shard AND m.endpoint_id = endpoint.endpoint_id
            AND m.position = :position)
        OR EXISTS (SELECT FROM outbox_parked p WHERE p.endpoint_id = endpoint.endpoint_id AND p.position = :position))
        AND (CAST(:event_position AS bigint) = CAST(:position AS bigint) OR failure.event_position = :event_position
            OR EXISTS (SELECT FROM outbox_attempts a WHERE a.position = :position
                AND a.endpoint_id = endpoint.endpoint_id AND a.event_position = :event_position))
    ORDER BY endpoint.endpoint_id
""")
_ATTEMPTS = text("""
    SELECT endpoint_id, at, outcome, error_class, error FROM outbox_attempts
    WHERE position = :position AND event_position = :event_position ORDER BY attempt_id
""")


async def get_event(
    connection: AsyncConnection, event_id: str
) -> tuple[Row[Any], Sequence[Row[Any]], Sequence[Row[Any]]] | None:
    """An event, its messages and the attempts that did not deliver them."""
    event = (await connection.execute(_EVENT, {"event_id": event_id})).one_or_none()
    if event is None:
        return None
    place = {"position": event.place, "event_position": event.position}
    messages = await connection.execute(_MESSAGES, {**place, "shard": event.shard})
    attempts = await connection.execute(_ATTEMPTS, place)
    return event, messages.all(), attempts.all()
