"""Workers' heartbeats, the audit of admins' actions, and the reads behind metrics and invariants."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic.alias_generators import to_camel
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.assignment.states import NoConflict

# --- workers

WORKER_ALIVE_SECONDS = 5
"""A worker that has not beaten its heart for longer counts as gone. It beats once a second."""

_HEARTBEAT = text("""
    INSERT INTO workers (worker_id) VALUES (:worker_id)
    ON CONFLICT (worker_id) DO UPDATE SET heartbeat_at = now()
""")
_FORGET_WORKERS = text("""
    DELETE FROM workers WHERE worker_id = :worker_id OR heartbeat_at < now() - make_interval(days => 1)
""")
_ALIVE = text("""
    SELECT count(*) FROM workers WHERE heartbeat_at > now() - make_interval(secs => :alive_seconds)
""")


async def heartbeat(connection: AsyncConnection, worker_id: str) -> None:
    """The worker is alive."""
    await connection.execute(_HEARTBEAT, {"worker_id": worker_id})


async def forget_worker(connection: AsyncConnection, worker_id: str) -> None:
    """The worker stops; those that vanished a day ago are swept out with it."""
    await connection.execute(_FORGET_WORKERS, {"worker_id": worker_id})


async def workers_alive(connection: AsyncConnection) -> int:
    """How many workers are alive, by the database's clock."""
    alive: int = (await connection.execute(_ALIVE, {"alive_seconds": float(WORKER_ALIVE_SECONDS)})).scalar_one()
    return alive


# --- audit

_RECORD = text("""
    INSERT INTO admin_actions (actor, action, target, reason, before, after)
    VALUES (:actor, :action, :target, :reason, CAST(:before AS jsonb), CAST(:after AS jsonb))
    RETURNING action_id
""")
_COMPLETE = text(
    "UPDATE admin_actions SET after = CAST(:after AS jsonb) WHERE action_id = :action_id AND after IS NULL"
)
_ACTIONS = text("""
    SELECT action_id, at, actor, action, target, reason, before, after FROM admin_actions
    WHERE CAST(:after_id AS bigint) IS NULL OR action_id < :after_id ORDER BY action_id DESC LIMIT :limit
""")


async def record_action(
    connection: AsyncConnection,
    actor: str,
    action: str,
    target: str,
    reason: str | None,
    *,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> int | None:
    """Write down who did what to what and why, in the transaction that does it; answer the line's id.

    Setting what was set before (`before` equals `after`) is worth a line only where a reason came with it: a stock
    that was counted and is right, say.
    """
    if before is not None and before == after and reason is None:
        return None
    record = {"actor": actor, "action": action, "target": target, "reason": reason}
    record["before"] = json.dumps(_as_api_names(before)) if before is not None else None
    record["after"] = json.dumps(_as_api_names(after)) if after is not None else None
    action_id: int = (await connection.execute(_RECORD, record)).scalar_one()
    return action_id


async def complete_action(connection: AsyncConnection, action_id: int, after: Mapping[str, Any]) -> None:
    """Add what came of an action that had to be written down before it was done; what is known stays."""
    await connection.execute(_COMPLETE, {"action_id": action_id, "after": json.dumps(_as_api_names(after))})


def _as_api_names(value: Any) -> Any:
    """The house's own names as answers spell them; a payload's names are somebody else's."""
    if not isinstance(value, Mapping):
        return value
    return {to_camel(name): each if name == "payload" else _as_api_names(each) for name, each in value.items()}


async def list_actions(connection: AsyncConnection, after: int | None, limit: int) -> Sequence[Row[Any]]:
    """A page of the audit, newest first."""
    return (await connection.execute(_ACTIONS, {"after_id": after, "limit": limit})).all()


# --- metrics

_METRICS = text("""
    SELECT
        (SELECT count(*) FROM outbox_messages) + (SELECT count(*) FROM outbox_parked)
            + (SELECT count(*) FROM outbox_failures WHERE status = 'RETRYING') AS outbox_backlog,
        (SELECT CAST(COALESCE(extract(epoch FROM now() - min(ready_at)), 0) AS float8) FROM outbox_messages)
            AS outbox_oldest_pending_seconds,
        (SELECT count(*) FROM outbox_failures WHERE status = 'FAILED') AS outbox_failed,
        (SELECT CAST(COALESCE(sum(attempts), 0) AS bigint) FROM outbox_failures WHERE status IN ('RETRYING', 'FAILED'))
            AS outbox_retry_attempts,
        shards.*,
        (SELECT count(*) FROM reservations WHERE status = 'ACTIVE'
            AND expires_at < now() - make_interval(secs => :grace_seconds)) AS stuck_reservations,
        (SELECT count(*) FROM deliveries WHERE status IN ('PENDING', 'OFFERED')) AS pending_deliveries,
        (SELECT count(*) FROM deliveries WHERE attention IS NOT NULL OR status = 'NEEDS_ATTENTION')
            AS deliveries_needing_attention,
        (SELECT CAST(GREATEST(max(extract(epoch FROM now() - xact_start)), 0) AS float8) FROM pg_stat_activity
            WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
            AND datname = current_database() AND pid <> pg_backend_pid())
            AS oldest_xmin_age_seconds
    FROM (SELECT CAST(sum(dispatched) AS bigint) AS dispatched, CAST(sum(errors_event) AS bigint) AS errors_event,
            CAST(sum(errors_endpoint) AS bigint) AS errors_endpoint,
            CAST(sum(errors_unknown) AS bigint) AS errors_unknown,
            CAST(sum(failed_transitions) AS bigint) AS failed_transitions FROM outbox_shards) shards
""")
_STATUS_COUNTS = text(
    "SELECT noun, status, CAST(sum(total) AS bigint) AS total FROM status_counts GROUP BY noun, status"
)
# One that an admin switched off is not sent to on purpose: nobody need be told.
_BREAKERS = text("""
    SELECT name, kind, open_until IS NULL OR (kind = 'webhook' AND NOT enabled) AS closed
    FROM outbox_endpoints WHERE kind <> 'workflow' ORDER BY name
""")
_CONFLICTS = text("""
    SELECT source, kind, CAST(sum(total) AS bigint) AS total FROM conflict_counts
    WHERE (kind = ANY(CAST(:apart AS text[]))) = :counted_apart GROUP BY source, kind ORDER BY source, kind
""")
_ZONE_CONFLICTS = text("""
    SELECT zone, source, kind, CAST(sum(total) AS bigint) AS total FROM (
        SELECT zone, source, kind, total FROM zone_conflict_counts
        UNION ALL SELECT '', source, kind, -total FROM zone_conflict_counts
        UNION ALL SELECT '', source, kind, total FROM conflict_counts WHERE kind <> ALL(CAST(:apart AS text[]))
    ) counted GROUP BY zone, source, kind HAVING sum(total) > 0 ORDER BY zone, source, kind
""")


@dataclass(frozen=True)
class Metrics:
    """One consistent read of everything that the metrics endpoint serves from rows."""

    values: Row[Any]
    status_counts: Sequence[Row[Any]]
    breakers: Sequence[Row[Any]]
    conflicts: Sequence[Row[Any]]


async def conflict_totals(connection: AsyncConnection) -> Sequence[Row[Any]]:
    """Conflicts since the first day, by source and kind."""
    return (await connection.execute(_CONFLICTS, {"apart": list(NoConflict), "counted_apart": False})).all()


async def apart_totals(connection: AsyncConnection) -> Sequence[Row[Any]]:
    """Attempts that came to nothing and lost to nobody, since the first day, by source and kind."""
    return (await connection.execute(_CONFLICTS, {"apart": list(NoConflict), "counted_apart": True})).all()


async def zone_conflict_totals(connection: AsyncConnection) -> Sequence[Row[Any]]:
    """Conflicts since the first day, by zone, source and kind; the zone is empty of those counted without one."""
    return (await connection.execute(_ZONE_CONFLICTS, {"apart": list(NoConflict)})).all()


async def status_totals(connection: AsyncConnection, noun: str) -> dict[str, int]:
    """How many orders or reservations there are of each status."""
    rows = await connection.execute(_STATUS_COUNTS)
    return {row.status: row.total for row in rows if row.noun == noun}


async def read_metrics(connection: AsyncConnection, grace_seconds: float) -> Metrics:
    """Read the counters and gauges; closed rows are counted as they change, never scanned."""
    values = (await connection.execute(_METRICS, {"grace_seconds": float(grace_seconds)})).one()
    counts = (await connection.execute(_STATUS_COUNTS)).all()
    breakers = (await connection.execute(_BREAKERS)).all()
    conflicts = await conflict_totals(connection)
    return Metrics(values, counts, breakers, conflicts)


# --- invariants

OUTBOX_PATIENCE_SECONDS = 300

# Each selects the offenders, as text: the row that breaks the promise.
_INVARIANTS: dict[str, str] = {
    "stock_not_negative": "SELECT sku FROM products WHERE stock < 0",
    "reserved_within_stock": "SELECT sku FROM products WHERE reserved < 0 OR reserved > stock",
    "reserved_matches_active_reservations": """
        SELECT p.sku FROM products p
        LEFT JOIN (SELECT sku, sum(quantity) AS quantity FROM reservations WHERE status = 'ACTIVE' GROUP BY sku) held
            ON held.sku = p.sku
        WHERE p.reserved <> COALESCE(held.quantity, 0)""",
    "outbox_backlog": f"""
        SELECT m.position || '-' || m.endpoint_id FROM outbox_messages m JOIN outbox_endpoints e USING (endpoint_id)
        WHERE e.enabled AND e.open_until IS NULL
            AND GREATEST(m.ready_at, e.reachable_since) < now() - make_interval(secs => {OUTBOX_PATIENCE_SECONDS})""",
    "no_duplicate_notifications": "SELECT CAST(event_id AS text) FROM notifications WHERE sent_again > 0",
    "one_live_assignment_a_delivery": """
        SELECT d.delivery_id FROM deliveries d LEFT JOIN assignments a ON a.delivery_id = d.delivery_id AND a.live
        WHERE d.status IN ('OFFERED', 'ASSIGNED', 'PICKED_UP')
        GROUP BY d.delivery_id HAVING count(a.assignment_id) <> 1""",
    "courier_load_within_capacity": """
        SELECT c.courier_id FROM couriers c
        LEFT JOIN (SELECT courier_id, count(*) AS held FROM assignments WHERE live GROUP BY courier_id) a
            ON a.courier_id = c.courier_id
        WHERE c.load > c.capacity OR c.load <> COALESCE(a.held, 0)""",
    "workflows_and_rows_agree": """
        SELECT kind || ' ' || target FROM disagreements
        WHERE last_seen_at - first_seen_at > interval '30 seconds'""",
    # No join, which would read every closed reservation: the lines of each order under way are looked up.
    "not_expired_and_confirmed": """
        SELECT o.order_id FROM orders o
        WHERE o.status = 'CONFIRMED'
            AND 'COMMITTED' <> ANY (SELECT r.status FROM reservations r WHERE r.order_id = o.order_id)""",
}
_SAMPLE = 5


@dataclass(frozen=True)
class InvariantCheck:
    """A promise, how many rows break it, and a few of them."""

    name: str
    violations: int
    sample: list[str]


async def check_invariants(connection: AsyncConnection) -> list[InvariantCheck]:
    """Check every promise on one snapshot (the caller reads in one transaction)."""
    checks = []
    for name, offenders in _INVARIANTS.items():
        statement = text(f"""
            SELECT count(*) AS violations, (array_agg(offender))[1:{_SAMPLE}] AS sample
            FROM ({offenders}) AS o(offender)
        """)
        row = (await connection.execute(statement)).one()
        checks.append(InvariantCheck(name, row.violations, row.sample or []))
    return checks


_CLOCK = text("SELECT clock_timestamp()")


async def database_time(connection: AsyncConnection) -> datetime:
    """The database's clock, which is the one that counts."""
    now: datetime = (await connection.execute(_CLOCK)).scalar_one()
    return now
