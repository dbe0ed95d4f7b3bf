"""The installation, its workers, and the record of what was done and found."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Index, PrimaryKeyConstraint, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB, UUID

from db.schema.base import metadata, time

installation = Table(
    "installation",
    metadata,
    Column(
        "singleton", Boolean, CheckConstraint("singleton", name="singleton"), primary_key=True, server_default="true"
    ),
    Column("id", Text, nullable=False),
    # Temporal's standing workflows remember it: another database of the same name is not this one.
    Column("database_id", UUID(as_uuid=False), nullable=False, server_default=text("gen_random_uuid()")),
    time("created_at", default=True, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("worker_id", Text, primary_key=True),
    time("started_at", default=True, nullable=False),
    time("heartbeat_at", default=True, nullable=False),
)

admin_actions = Table(
    "admin_actions",
    metadata,
    Column("action_id", BigInteger, primary_key=True, autoincrement=True),
    time("at", default=True, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("reason", Text),
    Column("before", JSONB),
    Column("after", JSONB),
)

disagreements = Table(
    "disagreements",
    metadata,
    # What the last cross-check found amiss between rows and workflows, and left.
    Column("kind", Text, primary_key=True),
    Column("target", Text, primary_key=True),
    time("first_seen_at", default=True, nullable=False),
    time("last_seen_at", default=True, nullable=False),
)

job_runs = Table(
    "job_runs",
    metadata,
    Column("job", Text, primary_key=True),
    time("last_started_at"),
    # The last run that got to its end and the last that did not: each time says one thing.
    time("last_finished_at"),
    Column("last_result", JSONB),
    Column("last_error", Text),
    time("last_error_at"),
    Column("succeeded_total", BigInteger, nullable=False, server_default="0"),
    Column("failed_total", BigInteger, nullable=False, server_default="0"),
)

metric_samples = Table(
    "metric_samples",
    metadata,
    # What the console's charts draw: one row per time bucket, of the last hour only.
    time("at", nullable=False),
    Column("values", JSONB, nullable=False),
    PrimaryKeyConstraint("at"),
)

ended_sessions = Table(
    "ended_sessions",
    metadata,
    # Of the console, by logging out; kept until their cookies are worth nothing anyway.
    Column("session_id", Text, primary_key=True),
    time("expires_at", nullable=False),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("snapshot_id", Text, primary_key=True),
    Column("reason", Text),
    Column("status", Text, nullable=False, server_default="RUNNING"),
    Column("content", JSONB),
    time("created_at", default=True, nullable=False),
    CheckConstraint("status IN ('RUNNING', 'DONE', 'FAILED')", name="status"),
    CheckConstraint("(status = 'DONE') = (content IS NOT NULL)", name="content"),
    Index("snapshots_newest", text("created_at DESC"), text("snapshot_id DESC")),
)
