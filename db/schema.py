"""The tables: the business truth, the outbox and the record of what admins did.

Names are the nouns of the API, so that an operator's hand-written SQL guesses right. `migrations/` builds the same
(a test compares them); the triggers that keep `status_counts` are in the first migration.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

_now = text("now()")


def _time(name: str, *, default: bool = False, nullable: bool = True) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=_now if default else None)


installation = Table(
    "installation",
    metadata,
    Column(
        "singleton", Boolean, CheckConstraint("singleton", name="singleton"), primary_key=True, server_default="true"
    ),
    Column("id", Text, nullable=False),
    # Temporal's standing workflows remember it: another database of the same name is not this one.
    Column("database_id", UUID(as_uuid=False), nullable=False, server_default=text("gen_random_uuid()")),
    _time("created_at", default=True, nullable=False),
)

# --- inventory

products = Table(
    "products",
    metadata,
    Column("sku", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("stock", Integer, nullable=False),
    Column("reserved", Integer, nullable=False, server_default="0"),
    # The balance of stock_ledger: an edit of `stock` by hand shows as a difference from it.
    Column("ledger_stock", Integer, nullable=False),
    _time("created_at", default=True, nullable=False),
    _time("updated_at", default=True, nullable=False),
    CheckConstraint("stock >= 0", name="stock"),
    CheckConstraint("0 <= reserved AND reserved <= stock", name="reserved"),
    Index("products_newest", text("created_at DESC"), text("sku DESC")),
    Index("products_off_ledger", "sku", postgresql_where=text("stock <> ledger_stock")),
)

stock_ledger = Table(
    "stock_ledger",
    metadata,
    Column("entry_id", BigInteger, primary_key=True, autoincrement=True),
    _time("at", default=True, nullable=False),
    Column("sku", Text, ForeignKey("products.sku"), nullable=False),
    Column("movement", Text, nullable=False),
    Column("quantity", Integer, nullable=False),
    Column("before", Integer, nullable=False),
    Column("after", Integer, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text),
    Column("order_id", Text),
    Index("stock_ledger_sku", "sku", "entry_id"),
)

# --- orders and what they hold

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
    _time("created_at", default=True, nullable=False),
    CheckConstraint(
        "status IN ('RESERVED', 'CONFIRMED', 'DELIVERED', 'REJECTED', 'EXPIRED', 'CANCELLED')", name="status"
    ),
    Index("orders_newest", text("created_at DESC"), text("order_id DESC")),
    Index("orders_newest_by_status", "status", text("created_at DESC"), text("order_id DESC")),
)

reservations = Table(
    "reservations",
    metadata,
    Column("reservation_id", BigInteger, primary_key=True, autoincrement=True),
    Column("order_id", Text, ForeignKey("orders.order_id"), nullable=False),
    Column("sku", Text, ForeignKey("products.sku"), nullable=False),
    Column("quantity", Integer, nullable=False),
    Column("status", Text, nullable=False),
    _time("expires_at", nullable=False),
    _time("created_at", default=True, nullable=False),
    _time("closed_at"),
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
    _time("offer_expires_at"),
    _time("promised_at", nullable=False),
    Column("pickup", JSONB),
    Column("dropoff", JSONB, nullable=False),
    Column("timeline", JSONB, nullable=False),
    _time("created_at", default=True, nullable=False),
    CheckConstraint(
        "status IN ('PENDING', 'OFFERED', 'ASSIGNED', 'PICKED_UP', 'DELIVERED', 'CANCELLED', 'NEEDS_ATTENTION')",
        name="status",
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
    _time("created_at", default=True, nullable=False),
    _time("updated_at", default=True, nullable=False),
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
    Column("live", Boolean, nullable=False, server_default="true"),
    # How it ended: delivered, declined, cancelled, taken_over.
    Column("outcome", Text),
    _time("created_at", default=True, nullable=False),
    _time("ended_at"),
    CheckConstraint("source IN ('auto', 'manual', 'route')", name="source"),
    CheckConstraint("live = (outcome IS NULL)", name="live"),
    # Whatever code does: never two couriers at one door.
    Index("assignments_one_live", "delivery_id", unique=True, postgresql_where=text("live")),
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
    CheckConstraint("mode IN ('auto', 'manual')", name="mode"),
)

assignment_rounds = Table(
    "assignment_rounds",
    metadata,
    Column("round_id", Text, primary_key=True),
    Column("zone", Text, nullable=False),
    _time("started_at", nullable=False),
    _time("finished_at", default=True, nullable=False),
    # What the matching saw, so that it can be computed again and explained.
    Column("inputs", JSONB, nullable=False),
    Column("pairs", JSONB, nullable=False),
    Column("conflicts", Integer, nullable=False),
    Index("assignment_rounds_newest", "zone", text("round_id DESC")),
)

conflict_counts = Table(
    "conflict_counts",
    metadata,
    Column("source", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("bucket", SmallInteger, primary_key=True),
    Column("total", BigInteger, nullable=False),
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

# --- outbox: the log, and where each of its events is on the way to each endpoint

outbox_events = Table(
    "outbox_events",
    metadata,
    # Drawn under the lock of the lane's row, so it grows along every lane.
    Column("position", BigInteger, primary_key=True, autoincrement=True),
    Column("event_id", UUID(as_uuid=False), nullable=False, unique=True),
    Column("event_type", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("lane", Text, nullable=False),
    Column("shard", SmallInteger, nullable=False),
    Column("data", JSONB, nullable=False),
    _time("occurred_at", nullable=False),
    Column("fixes", UUID(as_uuid=False)),
)

outbox_endpoints = Table(
    "outbox_endpoints",
    metadata,
    Column("endpoint_id", Integer, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("url", Text),
    Column("event_types", ARRAY(Text)),
    Column("enabled", Boolean, nullable=False, server_default="true"),
    Column("secret", Text),
    Column("previous_secret", Text),
    _time("previous_secret_until"),
    # The breaker: open while open_until is set; after that moment one probe at a time is let through.
    _time("open_until"),
    Column("consecutive_failures", Integer, nullable=False, server_default="0"),
    Column("last_error", Text),
    _time("reachable_since", default=True, nullable=False),
    _time("created_at", default=True, nullable=False),
    CheckConstraint("kind IN ('webhook', 'workflow')", name="kind"),
)

outbox_shards = Table(
    "outbox_shards",
    metadata,
    Column("shard", SmallInteger, primary_key=True),
    Column("epoch", BigInteger, nullable=False, server_default="0"),
    Column("owner", Text),
    _time("taken_at"),
    # Fleet-wide counters live here: the row is written by every settle anyway.
    Column("dispatched", BigInteger, nullable=False, server_default="0"),
    Column("errors_event", BigInteger, nullable=False, server_default="0"),
    Column("errors_endpoint", BigInteger, nullable=False, server_default="0"),
    Column("errors_unknown", BigInteger, nullable=False, server_default="0"),
    Column("failed_transitions", BigInteger, nullable=False, server_default="0"),
)

outbox_messages = Table(
    "outbox_messages",
    metadata,
    # Ready to go. A row's presence is what "pending" means; it is inserted and deleted, never updated.
    Column("shard", SmallInteger, primary_key=True, autoincrement=False),
    Column("endpoint_id", Integer, primary_key=True, autoincrement=False),
    # Its place in the lane. The event it carries is the one logged there, unless a fix put another in its place.
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("event_position", BigInteger, nullable=False),
    Column("lane", Text, nullable=False),
    _time("ready_at", default=True, nullable=False),
)

outbox_claims = Table(
    "outbox_claims",
    metadata,
    # What a relay is sending right now: written before the first byte goes out, so that a crash leaves a trace.
    Column("shard", SmallInteger, primary_key=True, autoincrement=False),
    Column("endpoint_id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("positions", ARRAY(BigInteger), nullable=False),
    # Evidence for the question whose fault a failure is: something of this lane passed there at that time.
    Column("passed_lane", Text),
    _time("passed_at"),
)

outbox_parked = Table(
    "outbox_parked",
    metadata,
    # Waits aside, behind a failing message of its lane.
    Column("endpoint_id", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("event_position", BigInteger, nullable=False),
    Column("shard", SmallInteger, nullable=False),
    Column("lane", Text, nullable=False),
    _time("parked_at", default=True, nullable=False),
    Index("outbox_parked_lane", "endpoint_id", "lane", "position"),
)

outbox_failures = Table(
    "outbox_failures",
    metadata,
    # A message that failed for a reason of its own; kept after its end, until retention takes it.
    Column("endpoint_id", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("event_position", BigInteger, nullable=False),
    Column("shard", SmallInteger, nullable=False),
    Column("lane", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error_class", Text, nullable=False),
    Column("last_error", Text, nullable=False),
    _time("failed_at", default=True, nullable=False),
    _time("next_attempt_at"),
    _time("workflow_started_at"),
    CheckConstraint("status IN ('PENDING', 'RETRYING', 'FAILED', 'DELIVERED', 'IGNORED')", name="status"),
    Index(
        "outbox_failures_blocked_lanes",
        "endpoint_id",
        "lane",
        unique=True,
        postgresql_where=text("status IN ('RETRYING', 'FAILED')"),
    ),
    Index("outbox_failures_newest", "status", text("failed_at DESC"), text("position DESC"), text("endpoint_id DESC")),
    Index(
        "outbox_failures_without_workflow",
        "shard",
        postgresql_where=text("status = 'RETRYING' AND workflow_started_at IS NULL"),
    ),
)

outbox_attempts = Table(
    "outbox_attempts",
    metadata,
    # Attempts that did not deliver. The one that did is in outbox_finished.
    Column("attempt_id", BigInteger, primary_key=True, autoincrement=True),
    Column("endpoint_id", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    _time("at", default=True, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("error_class", Text),
    Column("error", Text),
    Index("outbox_attempts_message", "position", "endpoint_id", "attempt_id"),
    CheckConstraint("outcome IN ('failed', 'interrupted')", name="outcome"),
)

outbox_finished = Table(
    "outbox_finished",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("endpoint_id", Integer, primary_key=True, autoincrement=False),
    Column("status", Text, nullable=False),
    Column("duration_ms", Double),
    _time("finished_at", default=True, nullable=False),
    CheckConstraint("status IN ('DELIVERED', 'IGNORED')", name="status"),
)

# --- operations

workers = Table(
    "workers",
    metadata,
    Column("worker_id", Text, primary_key=True),
    _time("started_at", default=True, nullable=False),
    _time("heartbeat_at", default=True, nullable=False),
)

admin_actions = Table(
    "admin_actions",
    metadata,
    Column("action_id", BigInteger, primary_key=True, autoincrement=True),
    _time("at", default=True, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("reason", Text),
    Column("before", JSONB),
    Column("after", JSONB),
)

disagreements = Table(
    "disagreements",
    metadata,
    # What the last cross-check found amiss between rows and workflows, and left.
    Column("kind", Text, primary_key=True),
    Column("target", Text, primary_key=True),
    _time("first_seen_at", default=True, nullable=False),
)

job_runs = Table(
    "job_runs",
    metadata,
    Column("job", Text, primary_key=True),
    _time("last_started_at"),
    # The last run that got to its end and the last that did not: each time says one thing.
    _time("last_finished_at"),
    Column("last_result", JSONB),
    Column("last_error", Text),
    _time("last_error_at"),
    Column("succeeded_total", BigInteger, nullable=False, server_default="0"),
    Column("failed_total", BigInteger, nullable=False, server_default="0"),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("snapshot_id", Text, primary_key=True),
    Column("reason", Text),
    Column("status", Text, nullable=False, server_default="RUNNING"),
    Column("content", JSONB),
    _time("created_at", default=True, nullable=False),
    CheckConstraint("status IN ('RUNNING', 'DONE', 'FAILED')", name="status"),
    CheckConstraint("(status = 'DONE') = (content IS NOT NULL)", name="content"),
    Index("snapshots_newest", text("created_at DESC"), text("snapshot_id DESC")),
)

reconciliations = Table(
    "reconciliations",
    metadata,
    Column("operation_id", Text, primary_key=True),
    Column("dry_run", Boolean, nullable=False),
    Column("skus", ARRAY(Text)),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="RUNNING"),
    _time("created_at", default=True, nullable=False),
    _time("finished_at"),
    CheckConstraint("status IN ('RUNNING', 'DONE', 'FAILED')", name="status"),
)

corrections = Table(
    "corrections",
    metadata,
    Column("operation_id", Text, ForeignKey("reconciliations.operation_id"), primary_key=True),
    Column("sku", Text, ForeignKey("products.sku"), primary_key=True),
    Column("reserved_before", Integer, nullable=False),
    Column("reserved_after", Integer, nullable=False),
    Column("ledger_before", Integer, nullable=False),
    Column("ledger_after", Integer, nullable=False),
    Column("applied", Boolean, nullable=False),
    _time("at", default=True, nullable=False),
)
