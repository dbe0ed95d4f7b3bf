"""What PostgreSQL itself says of its sessions, and who of Waybill's processes is there.

The application's role need not be a superuser: of other roles' sessions it may see that they are there, which lock they
wait for and what they keep from being cleaned up, but neither state nor statement (unless it has `pg_read_all_stats`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.ops import WORKER_ALIVE_SECONDS

_MOST_WORKERS = 100
_WORKERS = text(f"""
    SELECT worker_id, started_at, heartbeat_at,
        heartbeat_at > now() - make_interval(secs => {WORKER_ALIVE_SECONDS}) AS alive
    FROM workers ORDER BY alive DESC, started_at DESC, worker_id LIMIT {_MOST_WORKERS}
""")
_SHARDS = text(f"""
    SELECT shard, owner, taken_at,
        COALESCE(heartbeat_at > now() - make_interval(secs => {WORKER_ALIVE_SECONDS}), false) AS owner_alive
    FROM outbox_shards LEFT JOIN workers ON worker_id = owner ORDER BY shard
""")

_SESSION = """
    a.pid, a.application_name, a.state, a.query,
    CAST(extract(epoch FROM clock_timestamp() - a.xact_start) AS float8) AS transaction_seconds
"""
_LONGEST = text(f"""
    SELECT {_SESSION} FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.xact_start IS NOT NULL
        AND a.pid <> pg_backend_pid()
    ORDER BY a.xact_start LIMIT 1
""")
_HIDDEN = text("""
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query = '<insufficient privilege>'
""")
# PostgreSQL shows a transaction the sessions as they were when it first looked; locks it shows as they are.
_LOOK_AGAIN = text("SELECT pg_stat_clear_snapshot()")
# pg_blocking_pids stops the lock manager for an instant, so it is asked about the rows shown only.
_MOST_WAITS = 20
_WAITS = text(f"""
    WITH waits AS MATERIALIZED (
        SELECT lock.pid, min(lock.waitstart) AS waits_since, count(*) OVER () AS waiting
        FROM pg_locks lock JOIN pg_stat_activity session ON session.pid = lock.pid
        WHERE NOT lock.granted AND session.datname = current_database() AND session.state IS DISTINCT FROM 'idle'
        GROUP BY lock.pid ORDER BY waits_since, lock.pid LIMIT {_MOST_WAITS}
    )
    SELECT {_SESSION}, waits.waiting,
        CAST(extract(epoch FROM clock_timestamp() - waits.waits_since) AS float8) AS waiting_seconds,
        ARRAY(SELECT DISTINCT unnest(pg_blocking_pids(waits.pid)) ORDER BY 1) AS blocked_by
    FROM waits JOIN pg_stat_activity a ON a.pid = waits.pid ORDER BY waits.waits_since, a.pid
""")
_SESSIONS = text(f"SELECT {_SESSION} FROM pg_stat_activity a WHERE a.pid = ANY(CAST(:pids AS int[]))")
# A transaction that wrote keeps rows from being cleaned up by its own id, even while it has no snapshot. PostgreSQL
# counts ages from when this transaction first asked: what has begun since then would be younger than nothing.
_OLDEST_XMIN = text("""
    SELECT holder, pid, name, GREATEST(age, 0) AS age,
        CASE WHEN seconds IS NOT NULL THEN GREATEST(seconds, 0) END AS seconds
    FROM (
        SELECT 'session' AS holder, pid, application_name AS name,
            GREATEST(age(backend_xmin), age(backend_xid)) AS age,
            CAST(extract(epoch FROM clock_timestamp() - xact_start) AS float8) AS seconds
        FROM pg_stat_activity
        WHERE (datname = current_database() OR datname IS NULL) AND pid <> pg_backend_pid()
            AND backend_type IS DISTINCT FROM 'autovacuum worker'
        UNION ALL
        SELECT 'prepared transaction', NULL, gid, age(transaction),
            CAST(extract(epoch FROM clock_timestamp() - prepared) AS float8)
        FROM pg_prepared_xacts WHERE database = current_database()
        UNION ALL
        SELECT 'replication slot', active_pid, slot_name, GREATEST(age(xmin), age(catalog_xmin)), NULL
        FROM pg_replication_slots
    ) AS holders
    WHERE holders.age IS NOT NULL ORDER BY holders.age DESC, holders.seconds DESC NULLS LAST LIMIT 1
""")


@dataclass(frozen=True)
class LockWait:
    """A session that waits for a lock, and the pids of those it waits for (0: a prepared transaction)."""

    session: Row[Any]
    blocked_by: list[int]


@dataclass(frozen=True)
class Transactions:
    """What goes on in the database at this moment, this transaction left out."""

    longest: Row[Any] | None
    hidden: int
    """Sessions of which this role may not see more than that they are there."""
    waiting: int
    """Sessions that wait for a lock; `waits` names the first of them."""
    waits: list[LockWait]
    blockers: dict[int, Row[Any]]
    oldest_xmin: Row[Any] | None


async def read_workers(connection: AsyncConnection) -> Sequence[Row[Any]]:
    """The workers, those alive first."""
    return (await connection.execute(_WORKERS)).all()


async def read_shards(connection: AsyncConnection) -> Sequence[Row[Any]]:
    """The relays' shards and who carries them."""
    return (await connection.execute(_SHARDS)).all()


async def read_transactions(connection: AsyncConnection) -> Transactions:
    """Long transactions, lock waits with those who cause them, and what keeps dead rows from being cleaned up."""
    await connection.execute(_LOOK_AGAIN)
    rows = (await connection.execute(_WAITS)).all()
    waits = [LockWait(row, row.blocked_by) for row in rows]
    pids = sorted({pid for wait in waits for pid in wait.blocked_by})
    blockers = {row.pid: row for row in await connection.execute(_SESSIONS, {"pids": pids})}
    longest = (await connection.execute(_LONGEST)).one_or_none()
    hidden = (await connection.execute(_HIDDEN)).scalar_one()
    oldest_xmin = (await connection.execute(_OLDEST_XMIN)).one_or_none()
    return Transactions(longest, hidden, rows[0].waiting if rows else 0, waits, blockers, oldest_xmin)
