"""Offers: their deadlines and who was asked; what needs a person; what rounds lost."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("refusals", sa.Integer(), server_default="0", nullable=False))
    op.add_column("deliveries", sa.Column("attention", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("deliveries_attention_check"), "deliveries", "attention IN ('max_offers', 'courier_offline')"
    )
    op.create_index(
        "deliveries_offered",
        "deliveries",
        ["zone", "offer_expires_at"],
        unique=False,
        postgresql_where=sa.text("status = 'OFFERED'"),
    )
    op.create_index(
        "deliveries_needing_attention",
        "deliveries",
        [sa.literal_column("created_at DESC"), sa.literal_column("delivery_id DESC")],
        unique=False,
        postgresql_where=sa.text("attention IS NOT NULL OR status = 'NEEDS_ATTENTION'"),
    )
    op.add_column("assignments", sa.Column("offered", sa.Boolean(), server_default="false", nullable=False))
    op.create_index(
        "assignments_one_offer",
        "assignments",
        ["delivery_id", "courier_id"],
        unique=True,
        postgresql_where=sa.text("offered"),
    )
    for name in ("deliveries", "couriers", "assigned"):
        op.add_column("assignment_rounds", sa.Column(name, sa.Integer(), server_default="0", nullable=False))
    op.add_column(
        "assignment_rounds",
        sa.Column("losers", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
    )
