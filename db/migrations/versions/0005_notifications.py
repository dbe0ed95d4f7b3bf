"""E-mail: its standing endpoint, off, and what customers were told."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

_KIND = "kind IN ('webhook', 'workflow', 'email')"


def upgrade() -> None:
    name = op.f("outbox_endpoints_kind_check")
    op.drop_constraint(name, "outbox_endpoints", type_="check")
    op.create_check_constraint(name, "outbox_endpoints", _KIND)
    # The name is a sink's from now on.
    op.execute("UPDATE outbox_endpoints SET name = 'email-' || endpoint_id WHERE name = 'email'")
    op.execute("INSERT INTO outbox_endpoints (name, kind, enabled) VALUES ('email', 'email', false)")
    op.create_table(
        "notifications",
        sa.Column("event_id", postgresql.UUID(as_uuid=False), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="1", nullable=False),
        sa.Column("sent_again", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("event_id", "channel", "recipient", name=op.f("notifications_pkey")),
    )
    op.create_index(
        "notifications_sent_again",
        "notifications",
        ["event_id"],
        unique=False,
        postgresql_where=sa.text("sent_again > 0"),
    )
