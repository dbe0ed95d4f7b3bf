"""Operations: how the jobs ran, and snapshots."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "job_runs",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("last_started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("last_error_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("succeeded_total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed_total", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("job", name=op.f("job_runs_pkey")),
    )
    op.create_table(
        "snapshots",
        sa.Column("snapshot_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default="RUNNING", nullable=False),
        sa.Column("content", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status IN ('RUNNING', 'DONE', 'FAILED')", name=op.f("snapshots_status_check")),
        sa.CheckConstraint("(status = 'DONE') = (content IS NOT NULL)", name=op.f("snapshots_content_check")),
        sa.PrimaryKeyConstraint("snapshot_id", name=op.f("snapshots_pkey")),
    )
    op.create_index(
        "snapshots_newest",
        "snapshots",
        [sa.literal_column("created_at DESC"), sa.literal_column("snapshot_id DESC")],
        unique=False,
    )
