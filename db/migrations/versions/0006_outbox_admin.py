"""The outbox's admin side: fixes, groups of failures, bulk replays, and what may have succeeded after all."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    _failures()
    _attempts()
    _claims()
    _replays()


def _failures() -> None:
    op.add_column("outbox_failures", sa.Column("fingerprint", sa.Text(), nullable=True))
    # Groups as coarse as what is known of the past; a new failure gets its own.
    op.execute("""
        UPDATE outbox_failures SET fingerprint = left(md5(concat_ws('|', event_type, endpoint_id, error_class)), 16)
    """)
    op.alter_column("outbox_failures", "fingerprint", nullable=False)
    op.add_column("outbox_failures", sa.Column("fixed_data", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("outbox_failures", sa.Column("attempt_began_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE outbox_failures SET workflow_started_at = NULL WHERE status <> 'RETRYING'")
    op.drop_index("outbox_failures_without_workflow", "outbox_failures")
    op.create_index(
        "outbox_failures_without_workflow",
        "outbox_failures",
        ["shard", "endpoint_id", "position"],
        unique=False,
        postgresql_where=sa.text("status = 'RETRYING' AND workflow_started_at IS NULL"),
    )
    op.create_index(
        "outbox_failures_with_workflow",
        "outbox_failures",
        ["shard"],
        unique=False,
        postgresql_where=sa.text("workflow_started_at IS NOT NULL"),
    )
    op.create_index("outbox_failures_groups", "outbox_failures", ["status", "fingerprint", "failed_at"], unique=False)


def _attempts() -> None:
    op.add_column("outbox_attempts", sa.Column("event_position", sa.BigInteger(), nullable=True))
    op.execute("UPDATE outbox_attempts SET event_position = position")
    op.alter_column("outbox_attempts", "event_position", nullable=False)
    op.drop_constraint("outbox_attempts_outcome_check", "outbox_attempts")
    op.create_check_constraint(
        op.f("outbox_attempts_outcome_check"),
        "outbox_attempts",
        "outcome IN ('failed', 'in_doubt', 'interrupted')",
    )
    # The class was found by what became of other events: it says nothing about whether this one arrived.
    op.execute("""
        UPDATE outbox_attempts SET outcome = 'in_doubt'
        WHERE outcome = 'failed' AND error_class <> 'event' AND error !~ '^HTTP (401|403|404|405|410)'
    """)


def _claims() -> None:
    op.add_column("outbox_claims", sa.Column("narrowed_to", sa.Integer(), nullable=True))
    op.add_column("outbox_claims", sa.Column("suspect_until", sa.BigInteger(), nullable=True))
    op.add_column("outbox_claims", sa.Column("interruptions", sa.Integer(), server_default="0", nullable=False))


def _replays() -> None:
    op.create_table(
        "outbox_replays",
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("filter", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("total", sa.Integer(), server_default="0", nullable=False),
        sa.Column("done", sa.Integer(), server_default="0", nullable=False),
        sa.Column("skipped", sa.Integer(), server_default="0", nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("action IN ('replay', 'ignore')", name=op.f("outbox_replays_action_check")),
        sa.CheckConstraint(
            "status IN ('RUNNING', 'PAUSED', 'DONE', 'FAILED')", name=op.f("outbox_replays_status_check")
        ),
        sa.PrimaryKeyConstraint("operation_id", name=op.f("outbox_replays_pkey")),
    )
    op.create_index(
        "outbox_replays_newest",
        "outbox_replays",
        [sa.literal_column("created_at DESC"), sa.literal_column("operation_id DESC")],
        unique=False,
    )
    op.create_index(
        "outbox_replays_running",
        "outbox_replays",
        ["operation_id"],
        unique=False,
        postgresql_where=sa.text("status = 'RUNNING'"),
    )
    op.create_table(
        "outbox_replay_items",
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("endpoint_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.CheckConstraint("outcome IN ('done', 'skipped')", name=op.f("outbox_replay_items_outcome_check")),
        sa.ForeignKeyConstraint(
            ["operation_id"],
            ["outbox_replays.operation_id"],
            name=op.f("outbox_replay_items_operation_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("operation_id", "position", "endpoint_id", name=op.f("outbox_replay_items_pkey")),
    )
    op.create_index(
        "outbox_replay_items_open",
        "outbox_replay_items",
        ["operation_id", "position", "endpoint_id"],
        unique=False,
        postgresql_where=sa.text("outcome IS NULL"),
    )
