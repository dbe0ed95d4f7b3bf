"""What admins see and do: conflicts by zone, and sessions of the console that were ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("conflict_counts", sa.Column("zone", sa.Text(), server_default="", nullable=False))
    op.drop_constraint(op.f("conflict_counts_pkey"), "conflict_counts")
    op.create_primary_key(op.f("conflict_counts_pkey"), "conflict_counts", ["source", "kind", "bucket", "zone"])
    op.create_table(
        "ended_sessions",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name=op.f("ended_sessions_pkey")),
    )
