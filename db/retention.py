"""Deleting what has been over for long: events that nobody needs any more, and what else grows with time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.ids import first_id_of
from domain.ops import Job

# A batch goes by position, which grows with time, so that no end has to be looked for. One statement sees every table
# at one moment, and a message is in one of them at any moment. What has ended stays ended (no replay brings it back),
# so what is found over here is over when it is deleted.
#
# Scalar sub-selects, not EXISTS: each event's few keys are looked up, and no table is ever hashed whole.
#
# What a fix put in an event's place has no message at its own position: it is needed while the event it fixes is there,
# and that is there while its place's message is.
_PICK = text("""
    SELECT e.position, CAST(e.event_id AS text) AS event_id, e.occurred_at >= :before AS recent,
        (SELECT true FROM outbox_endpoints endpoint WHERE
            (SELECT true FROM outbox_messages m
                WHERE m.shard = e.shard AND m.endpoint_id = endpoint.endpoint_id AND m.position = e.position)
            OR (SELECT true FROM outbox_parked p
                WHERE p.endpoint_id = endpoint.endpoint_id AND p.position = e.position)
            OR (SELECT f.status NOT IN ('DELIVERED', 'IGNORED') FROM outbox_failures f
                WHERE f.endpoint_id = endpoint.endpoint_id AND f.position = e.position)
            LIMIT 1) AS pending,
        (SELECT max(f.finished_at) >= :before FROM outbox_finished f WHERE f.position = e.position) AS ended_recently,
        (SELECT true FROM outbox_events fixed WHERE fixed.event_id = e.fixes) AS fixes_what_is_there
    FROM (SELECT position, event_id, shard, occurred_at, fixes FROM outbox_events
        WHERE position > :after ORDER BY position LIMIT :limit) e
    ORDER BY e.position
""")
_OF_POSITIONS = {
    "outbox_failures": text("""
        DELETE FROM outbox_failures WHERE endpoint_id = ANY(ARRAY(SELECT endpoint_id FROM outbox_endpoints))
            AND position = ANY(CAST(:positions AS bigint[])) AND status IN ('DELIVERED', 'IGNORED')
    """),
    "outbox_attempts": text("DELETE FROM outbox_attempts WHERE position = ANY(CAST(:positions AS bigint[]))"),
    "outbox_finished": text("DELETE FROM outbox_finished WHERE position = ANY(CAST(:positions AS bigint[]))"),
    "outbox_events": text("DELETE FROM outbox_events WHERE position = ANY(CAST(:positions AS bigint[]))"),
}
_NOTIFICATIONS = text("DELETE FROM notifications WHERE event_id = ANY(CAST(:event_ids AS uuid[]))")
_BEFORE = text("SELECT now() - make_interval(days => :days)")


@dataclass(frozen=True)
class EventsDeleted:
    """What a batch deleted, by table, and where the next one begins: None where everything that follows is recent."""

    deleted: Mapping[str, int]
    next_after: int | None


async def delete_events(connection: AsyncConnection, after: int, days: int, limit: int) -> EventsDeleted:
    """Of so many events behind a position, delete those that ended so many days ago, with all that hangs on them.

    An event of which one message is ready, parked, retried or FAILED is needed, however old it is.
    """
    before: datetime = (await connection.execute(_BEFORE, {"days": days})).scalar_one()
    rows = (await connection.execute(_PICK, {"before": before, "after": after, "limit": limit})).all()
    over = [row for row in rows if not (row.recent or row.pending or row.ended_recently or row.fixes_what_is_there)]
    deleted: dict[str, int] = {}
    if over:
        event_ids = {"event_ids": [row.event_id for row in over]}
        deleted["notifications"] = (await connection.execute(_NOTIFICATIONS, event_ids)).rowcount
        positions = {"positions": [row.position for row in over]}
        for table, statement in _OF_POSITIONS.items():
            deleted[table] = (await connection.execute(statement, positions)).rowcount
    last = len(rows) < limit or rows[-1].recent
    return EventsDeleted(deleted, None if last else rows[-1].position)


# Rounds are found by their ids, which begin with the time.
OLD_ROWS: Mapping[str, str] = {
    "assignment_rounds": """
        DELETE FROM assignment_rounds WHERE round_id = ANY(ARRAY(
            SELECT round_id FROM assignment_rounds WHERE round_id < :first_id AND finished_at < :before
            ORDER BY round_id LIMIT :limit))""",
    "snapshots": """
        DELETE FROM snapshots WHERE snapshot_id = ANY(ARRAY(
            SELECT snapshot_id FROM snapshots WHERE created_at < :before AND status <> 'RUNNING'
            ORDER BY created_at, snapshot_id LIMIT :limit))""",
    "outbox_replays": """
        DELETE FROM outbox_replays WHERE operation_id = ANY(ARRAY(
            SELECT operation_id FROM outbox_replays WHERE created_at < :before AND status IN ('DONE', 'FAILED')
            ORDER BY created_at, operation_id LIMIT :limit))""",
    "workers": """
        DELETE FROM workers WHERE worker_id = ANY(ARRAY(
            SELECT worker_id FROM workers WHERE heartbeat_at < :before LIMIT :limit))""",
    "job_runs": """
        DELETE FROM job_runs WHERE job = ANY(ARRAY(
            SELECT job FROM job_runs WHERE last_started_at < :before AND job <> ALL(CAST(:jobs AS text[]))
            LIMIT :limit))""",
}
"""What else is deleted when it is old; of the jobs' records, those of jobs that there are no more."""
_OLD_ROWS = {table: text(statement) for table, statement in OLD_ROWS.items()}


async def delete_old_rows(connection: AsyncConnection, table: str, days: int, limit: int) -> int:
    """Delete a batch of a table's rows that are older than so many days; answer how many."""
    before: datetime = (await connection.execute(_BEFORE, {"days": days})).scalar_one()
    given = {"before": before, "limit": limit, "first_id": first_id_of(before), "jobs": [str(job) for job in Job]}
    used = {name: value for name, value in given.items() if f":{name}" in OLD_ROWS[table]}
    return (await connection.execute(_OLD_ROWS[table], used)).rowcount
