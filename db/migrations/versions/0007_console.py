"""The console: samples of the metrics for its charts, and a customer's orders."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "metric_samples",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("values", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("at", name=op.f("metric_samples_pkey")),
    )
    op.create_index(
        "orders_newest_by_customer",
        "orders",
        ["customer_id", sa.literal_column("created_at DESC"), sa.literal_column("order_id DESC")],
        unique=False,
    )
