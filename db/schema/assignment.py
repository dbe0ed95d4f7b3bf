"""Couriers, who has which delivery, zones with their rounds, conflicts."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from db.schema.base import metadata, time

couriers = Table(
    "couriers",
    metadata,
    Column("courier_id", Text, primary_key=True),
    Column("zone", Text, nullable=False),
    Column("lat", Double, nullable=False),
    Column("lng", Double, nullable=False),
    Column("capacity", Integer, nullable=False),
    # Deliveries on the courier's hands: offered, assigned or picked up.
    Column("load", Integer, nullable=False, server_default="0"),
    Column("online", Boolean, nullable=False),
    time("created_at", default=True, nullable=False),
    time("updated_at", default=True, nullable=False),
    CheckConstraint("load BETWEEN 0 AND capacity", name="load"),
    Index("couriers_free", "zone", "courier_id", postgresql_where=text("online AND load < capacity")),
)

assignments = Table(
    "assignments",
    metadata,
    Column("assignment_id", BigInteger, primary_key=True, autoincrement=True),
    Column("delivery_id", Text, ForeignKey("deliveries.delivery_id"), nullable=False),
    Column("courier_id", Text, ForeignKey("couriers.courier_id"), nullable=False),
    Column("source", Text, nullable=False),
    Column("round_id", Text),
    # Whether it began as an offer with a deadline.
    Column("offered", Boolean, nullable=False, server_default="false"),
    Column("live", Boolean, nullable=False, server_default="true"),
    # How it ended: delivered, declined, expired, offline, cancelled, taken_over.
    Column("outcome", Text),
    time("created_at", default=True, nullable=False),
    time("ended_at"),
    CheckConstraint("source IN ('auto', 'manual', 'route')", name="source"),
    # Whether the courier's coming too late for it was counted.
    Column("lost_counted", Boolean, nullable=False, server_default="false"),
    CheckConstraint("live = (outcome IS NULL)", name="live"),
    # Whatever code does: never two couriers at one door.
    Index("assignments_one_live", "delivery_id", unique=True, postgresql_where=text("live")),
    # Nor is anybody asked twice for one delivery.
    Index("assignments_one_offer", "delivery_id", "courier_id", unique=True, postgresql_where=text("offered")),
    Index("assignments_live_by_courier", "courier_id", "assignment_id", postgresql_where=text("live")),
    Index("assignments_by_delivery", "delivery_id", "courier_id"),
)

zones = Table(
    "zones",
    metadata,
    Column("zone", Text, primary_key=True),
    Column("batch_window_seconds", Double, nullable=False, server_default="2"),
    Column("max_batch", Integer, nullable=False, server_default="200"),
    Column("parallel_rounds", Integer, nullable=False, server_default="1"),
    Column("top_candidates", Integer, nullable=False, server_default="16"),
    Column("accept_window_seconds", Double, nullable=False, server_default="0"),
    Column("max_offers", Integer, nullable=False, server_default="3"),
    Column("mode", Text, nullable=False, server_default="auto"),
    # Something to do; and whether the zone's workflow has been told since. Both are cleared when a round begins.
    Column("wake", Boolean, nullable=False, server_default="false"),
    Column("wake_signalled", Boolean, nullable=False, server_default="false"),
    Column("wake_generation", BigInteger, nullable=False, server_default="0"),
    CheckConstraint("mode IN ('auto', 'manual')", name="mode"),
)

assignment_rounds = Table(
    "assignment_rounds",
    metadata,
    Column("round_id", Text, primary_key=True),
    Column("zone", Text, nullable=False),
    time("started_at", nullable=False),
    time("finished_at", default=True, nullable=False),
    # What the matching saw, so that it can be computed again and explained; how much of it, without reading it.
    Column("inputs", JSONB, nullable=False),
    Column("deliveries", Integer, nullable=False, server_default="0"),
    Column("couriers", Integer, nullable=False, server_default="0"),
    Column("pairs", JSONB, nullable=False),
    Column("assigned", Integer, nullable=False, server_default="0"),
    Column("conflicts", Integer, nullable=False),
    # The winners that were lost at the commit: to whom, and why.
    Column("losers", JSONB, nullable=False, server_default="[]"),
    Index("assignment_rounds_newest", "zone", text("round_id DESC")),
)

# By ConflictKind; and by NoConflict, what is counted apart.
conflict_counts = Table(
    "conflict_counts",
    metadata,
    Column("source", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("bucket", SmallInteger, primary_key=True),
    Column("total", BigInteger, nullable=False),
)

# Of those, the conflicts of deliveries whose zone is known.
zone_conflict_counts = Table(
    "zone_conflict_counts",
    metadata,
    Column("zone", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("bucket", SmallInteger, primary_key=True),
    Column("total", BigInteger, nullable=False),
)
