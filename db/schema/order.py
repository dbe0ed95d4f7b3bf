"""Orders, what they hold and where they go; and how many there are of each status."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from db.schema.base import metadata, time

orders = Table(
    "orders",
    metadata,
    Column("order_id", Text, primary_key=True),
    Column("request_hash", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("zone", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("lines", JSONB, nullable=False),
    Column("shortages", JSONB),
    Column("pickup", JSONB),
    Column("dropoff", JSONB, nullable=False),
    Column("dropoff_address", Text),
    Column("email", Text),
    Column("hold_seconds", Integer, nullable=False),
    Column("timeline", JSONB, nullable=False),
    time("created_at", default=True, nullable=False),
    CheckConstraint(
        "status IN ('RESERVED', 'CONFIRMED', 'DELIVERED', 'REJECTED', 'EXPIRED', 'CANCELLED')", name="status"
    ),
    Index("orders_newest", text("created_at DESC"), text("order_id DESC")),
    Index("orders_newest_by_status", "status", text("created_at DESC"), text("order_id DESC")),
    Index("orders_newest_by_customer", "customer_id", text("created_at DESC"), text("order_id DESC")),
)

reservations = Table(
    "reservations",
    metadata,
    Column("reservation_id", BigInteger, primary_key=True, autoincrement=True),
    Column("order_id", Text, ForeignKey("orders.order_id"), nullable=False),
    Column("sku", Text, ForeignKey("products.sku"), nullable=False),
    Column("quantity", Integer, nullable=False),
    Column("status", Text, nullable=False),
    time("expires_at", nullable=False),
    time("created_at", default=True, nullable=False),
    time("closed_at"),
    UniqueConstraint("order_id", "sku"),
    CheckConstraint("quantity > 0", name="quantity"),
    CheckConstraint("status IN ('ACTIVE', 'COMMITTED', 'RELEASED', 'EXPIRED')", name="status"),
    Index(
        "reservations_active_by_sku",
        "sku",
        postgresql_include=["quantity"],
        postgresql_where=text("status = 'ACTIVE'"),
    ),
    Index(
        "reservations_active_by_deadline",
        "expires_at",
        "reservation_id",
        postgresql_where=text("status = 'ACTIVE'"),
    ),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("delivery_id", Text, primary_key=True),
    Column("order_id", Text, ForeignKey("orders.order_id"), nullable=False, unique=True),
    Column("zone", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("courier_id", Text),
    Column("pinned", Boolean, nullable=False, server_default="false"),
    Column("late", Boolean, nullable=False, server_default="false"),
    time("offer_expires_at"),
    # Couriers who were asked in vain since it began to wait, or since a person put it back.
    Column("refusals", Integer, nullable=False, server_default="0"),
    # Why a person is needed.
    Column("attention", Text),
    time("promised_at", nullable=False),
    Column("pickup", JSONB),
    Column("dropoff", JSONB, nullable=False),
    Column("timeline", JSONB, nullable=False),
    time("created_at", default=True, nullable=False),
    CheckConstraint(
        "status IN ('PENDING', 'OFFERED', 'ASSIGNED', 'PICKED_UP', 'DELIVERED', 'CANCELLED', 'NEEDS_ATTENTION')",
        name="status",
    ),
    CheckConstraint("attention IN ('max_offers', 'courier_offline')", name="attention"),
    Index(
        "deliveries_offered",
        "zone",
        "offer_expires_at",
        postgresql_where=text("status = 'OFFERED'"),
    ),
    Index(
        "deliveries_needing_attention",
        text("created_at DESC"),
        text("delivery_id DESC"),
        postgresql_where=text("attention IS NOT NULL OR status = 'NEEDS_ATTENTION'"),
    ),
    Index(
        "deliveries_waiting",
        "zone",
        "created_at",
        "delivery_id",
        postgresql_where=text("status IN ('PENDING', 'OFFERED', 'NEEDS_ATTENTION')"),
    ),
    Index(
        "deliveries_under_way",
        "delivery_id",
        postgresql_where=text("status IN ('OFFERED', 'ASSIGNED', 'PICKED_UP')"),
    ),
)

status_counts = Table(
    "status_counts",
    metadata,
    Column("noun", Text, primary_key=True),
    Column("status", Text, primary_key=True),
    # Transitions are spread over buckets, so that no counter is a row that everybody waits for.
    Column("bucket", SmallInteger, primary_key=True),
    Column("total", BigInteger, nullable=False),
)
