"""Endpoints: why they are disabled, since when they fail, and what needs no order; settings of the hot tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"

# The hot table is emptied as fast as it fills: its dead rows are to go long before a fifth of it is dead.
_HOT = "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0"
# Updated with every batch: room on the page keeps the updates away from the indexes.
_COUNTERS = "fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000"


def upgrade() -> None:
    op.add_column("outbox_endpoints", sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("outbox_endpoints", sa.Column("disabled_reason", sa.Text(), nullable=True))
    op.add_column(
        "outbox_endpoints",
        sa.Column("unordered_types", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
    )
    for table in ("outbox_messages", "outbox_parked"):
        op.execute(f"ALTER TABLE {table} SET ({_HOT})")
    for table in ("outbox_shards", "outbox_claims", "outbox_endpoints"):
        op.execute(f"ALTER TABLE {table} SET ({_COUNTERS})")
