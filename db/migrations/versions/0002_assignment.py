"""Assignment: couriers, who has which delivery, zones with their knobs and rounds, conflicts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "assignment_rounds",
        sa.Column("round_id", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("pairs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("conflicts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("round_id", name=op.f("assignment_rounds_pkey")),
    )
    op.create_index(
        "assignment_rounds_newest", "assignment_rounds", ["zone", sa.literal_column("round_id DESC")], unique=False
    )
    op.create_table(
        "conflict_counts",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source", "kind", "bucket", name=op.f("conflict_counts_pkey")),
    )
    op.create_table(
        "couriers",
        sa.Column("courier_id", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("lat", sa.Double(), nullable=False),
        sa.Column("lng", sa.Double(), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("load", sa.Integer(), server_default="0", nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("load BETWEEN 0 AND capacity", name=op.f("couriers_load_check")),
        sa.PrimaryKeyConstraint("courier_id", name=op.f("couriers_pkey")),
    )
    op.create_index(
        "couriers_free",
        "couriers",
        ["zone", "courier_id"],
        unique=False,
        postgresql_where=sa.text("online AND load < capacity"),
    )
    op.create_table(
        "zones",
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("batch_window_seconds", sa.Double(), server_default="2", nullable=False),
        sa.Column("max_batch", sa.Integer(), server_default="200", nullable=False),
        sa.Column("parallel_rounds", sa.Integer(), server_default="1", nullable=False),
        sa.Column("top_candidates", sa.Integer(), server_default="16", nullable=False),
        sa.Column("accept_window_seconds", sa.Double(), server_default="0", nullable=False),
        sa.Column("max_offers", sa.Integer(), server_default="3", nullable=False),
        sa.Column("mode", sa.Text(), server_default="auto", nullable=False),
        sa.Column("wake", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("wake_signalled", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("wake_generation", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("mode IN ('auto', 'manual')", name=op.f("zones_mode_check")),
        sa.PrimaryKeyConstraint("zone", name=op.f("zones_pkey")),
    )
    op.create_table(
        "assignments",
        sa.Column("assignment_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("delivery_id", sa.Text(), nullable=False),
        sa.Column("courier_id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("round_id", sa.Text(), nullable=True),
        sa.Column("live", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lost_counted", sa.Boolean(), server_default="false", nullable=False),
        sa.CheckConstraint("source IN ('auto', 'manual', 'route')", name=op.f("assignments_source_check")),
        sa.CheckConstraint("live = (outcome IS NULL)", name=op.f("assignments_live_check")),
        sa.ForeignKeyConstraint(["courier_id"], ["couriers.courier_id"], name=op.f("assignments_courier_id_fkey")),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.delivery_id"], name=op.f("assignments_delivery_id_fkey")),
        sa.PrimaryKeyConstraint("assignment_id", name=op.f("assignments_pkey")),
    )
    op.create_index("assignments_by_delivery", "assignments", ["delivery_id", "courier_id"], unique=False)
    op.create_index(
        "assignments_live_by_courier",
        "assignments",
        ["courier_id", "assignment_id"],
        unique=False,
        postgresql_where=sa.text("live"),
    )
    op.create_index(
        "assignments_one_live", "assignments", ["delivery_id"], unique=True, postgresql_where=sa.text("live")
    )
    op.drop_index("deliveries_open_by_zone", table_name="deliveries")
    op.create_index(
        "deliveries_under_way",
        "deliveries",
        ["delivery_id"],
        unique=False,
        postgresql_where=sa.text("status IN ('OFFERED', 'ASSIGNED', 'PICKED_UP')"),
    )
    op.create_index(
        "deliveries_waiting",
        "deliveries",
        ["zone", "created_at", "delivery_id"],
        unique=False,
        postgresql_where=sa.text("status IN ('PENDING', 'OFFERED', 'NEEDS_ATTENTION')"),
    )
