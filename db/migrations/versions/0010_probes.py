"""Where the probes of an endpoint are in their round of its lanes; which webhooks are being changed or deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("outbox_claims", sa.Column("probe_cursor", sa.BigInteger(), nullable=True))
    op.add_column("outbox_endpoints", sa.Column("lanes_stale", sa.Boolean(), server_default="false", nullable=False))
    op.add_column("outbox_endpoints", sa.Column("deletion_began_at", sa.DateTime(timezone=True), nullable=True))
