"""The first schema: inventory, orders, deliveries, outbox, operations.

Migrations only go forward: a database is taken back by its backup, not by code that was never run.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

SHARDS = 4
COUNT_BUCKETS = 16

# Deferred to the commit, so that a bucket's row is locked for an instant, after every other lock and always in the same
# order: orders before reservations, the state left before the state entered.
COUNT_STATUS = f"""
CREATE FUNCTION count_status() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    bucket_of_row smallint := hashtext(COALESCE(NEW.order_id, OLD.order_id)) & {COUNT_BUCKETS - 1};
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.status = NEW.status THEN
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        UPDATE status_counts SET total = total - 1
        WHERE noun = TG_TABLE_NAME AND status = OLD.status AND bucket = bucket_of_row;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        UPDATE status_counts SET total = total + 1
        WHERE noun = TG_TABLE_NAME AND status = NEW.status AND bucket = bucket_of_row;
    END IF;
    RETURN NULL;
END
$$
"""


def upgrade() -> None:
    create_tables()
    count_statuses()
    op.execute(f"INSERT INTO outbox_shards (shard) SELECT generate_series(0, {SHARDS - 1})")
    op.execute("INSERT INTO outbox_endpoints (name, kind) VALUES ('workflow', 'workflow')")


def count_statuses() -> None:
    op.execute(COUNT_STATUS)
    for noun, statuses in {
        "orders": "RESERVED CONFIRMED DELIVERED REJECTED EXPIRED CANCELLED",
        "reservations": "ACTIVE COMMITTED RELEASED EXPIRED",
    }.items():
        op.execute(f"""
            INSERT INTO status_counts (noun, status, bucket, total)
            SELECT '{noun}', status, bucket, 0
            FROM unnest(string_to_array('{statuses}', ' ')) AS status, generate_series(0, {COUNT_BUCKETS - 1}) AS bucket
        """)
        op.execute(f"""
            CREATE CONSTRAINT TRIGGER {noun}_count_status AFTER INSERT OR DELETE OR UPDATE OF status ON {noun}
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION count_status()
        """)


def create_tables() -> None:
    op.create_table(
        "admin_actions",
        sa.Column("action_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("before", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("after", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("action_id", name=op.f("admin_actions_pkey")),
    )
    op.create_table(
        "installation",
        sa.Column("singleton", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("database_id", sa.UUID(as_uuid=False), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("singleton", name=op.f("installation_singleton_check")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("installation_pkey")),
    )
    op.create_table(
        "disagreements",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("first_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("kind", "target", name=op.f("disagreements_pkey")),
    )
    op.create_table(
        "orders",
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("lines", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("shortages", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("pickup", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("dropoff", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("dropoff_address", sa.Text(), nullable=True),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("hold_seconds", sa.Integer(), nullable=False),
        sa.Column("timeline", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status IN ('RESERVED', 'CONFIRMED', 'DELIVERED', 'REJECTED', 'EXPIRED', 'CANCELLED')",
            name=op.f("orders_status_check"),
        ),
        sa.PrimaryKeyConstraint("order_id", name=op.f("orders_pkey")),
    )
    op.create_index(
        "orders_newest",
        "orders",
        [sa.literal_column("created_at DESC"), sa.literal_column("order_id DESC")],
        unique=False,
    )
    op.create_index(
        "orders_newest_by_status",
        "orders",
        ["status", sa.literal_column("created_at DESC"), sa.literal_column("order_id DESC")],
        unique=False,
    )
    op.create_table(
        "outbox_attempts",
        sa.Column("attempt_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("endpoint_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("error_class", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("outcome IN ('failed', 'interrupted')", name=op.f("outbox_attempts_outcome_check")),
        sa.PrimaryKeyConstraint("attempt_id", name=op.f("outbox_attempts_pkey")),
    )
    op.create_index(
        "outbox_attempts_message", "outbox_attempts", ["position", "endpoint_id", "attempt_id"], unique=False
    )
    op.create_table(
        "outbox_endpoints",
        sa.Column("endpoint_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("event_types", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("enabled", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("secret", sa.Text(), nullable=True),
        sa.Column("previous_secret", sa.Text(), nullable=True),
        sa.Column("previous_secret_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("open_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("consecutive_failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("reachable_since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind IN ('webhook', 'workflow')", name=op.f("outbox_endpoints_kind_check")),
        sa.PrimaryKeyConstraint("endpoint_id", name=op.f("outbox_endpoints_pkey")),
        sa.UniqueConstraint("name", name=op.f("outbox_endpoints_name_key")),
    )
    op.create_table(
        "outbox_events",
        sa.Column("position", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("event_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("fixes", sa.UUID(as_uuid=False), nullable=True),
        sa.PrimaryKeyConstraint("position", name=op.f("outbox_events_pkey")),
        sa.UniqueConstraint("event_id", name=op.f("outbox_events_event_id_key")),
    )
    op.create_table(
        "outbox_finished",
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("endpoint_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("duration_ms", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status IN ('DELIVERED', 'IGNORED')", name=op.f("outbox_finished_status_check")),
        sa.PrimaryKeyConstraint("position", "endpoint_id", name=op.f("outbox_finished_pkey")),
    )
    op.create_table(
        "outbox_shards",
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("dispatched", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("errors_event", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("errors_endpoint", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("errors_unknown", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed_transitions", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("shard", name=op.f("outbox_shards_pkey")),
    )
    op.create_table(
        "products",
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("stock", sa.Integer(), nullable=False),
        sa.Column("reserved", sa.Integer(), server_default="0", nullable=False),
        sa.Column("ledger_stock", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("0 <= reserved AND reserved <= stock", name=op.f("products_reserved_check")),
        sa.CheckConstraint("stock >= 0", name=op.f("products_stock_check")),
        sa.PrimaryKeyConstraint("sku", name=op.f("products_pkey")),
    )
    op.create_index(
        "products_newest",
        "products",
        [sa.literal_column("created_at DESC"), sa.literal_column("sku DESC")],
        unique=False,
    )
    op.create_index(
        "products_off_ledger", "products", ["sku"], unique=False, postgresql_where=sa.text("stock <> ledger_stock")
    )
    op.create_table(
        "reconciliations",
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("skus", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="RUNNING", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('RUNNING', 'DONE', 'FAILED')", name=op.f("reconciliations_status_check")),
        sa.PrimaryKeyConstraint("operation_id", name=op.f("reconciliations_pkey")),
    )
    op.create_table(
        "status_counts",
        sa.Column("noun", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("noun", "status", "bucket", name=op.f("status_counts_pkey")),
    )
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name=op.f("workers_pkey")),
    )
    op.create_table(
        "corrections",
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("reserved_before", sa.Integer(), nullable=False),
        sa.Column("reserved_after", sa.Integer(), nullable=False),
        sa.Column("ledger_before", sa.Integer(), nullable=False),
        sa.Column("ledger_after", sa.Integer(), nullable=False),
        sa.Column("applied", sa.Boolean(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["operation_id"], ["reconciliations.operation_id"], name=op.f("corrections_operation_id_fkey")
        ),
        sa.ForeignKeyConstraint(["sku"], ["products.sku"], name=op.f("corrections_sku_fkey")),
        sa.PrimaryKeyConstraint("operation_id", "sku", name=op.f("corrections_pkey")),
    )
    op.create_table(
        "deliveries",
        sa.Column("delivery_id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("courier_id", sa.Text(), nullable=True),
        sa.Column("pinned", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("late", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("offer_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("promised_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pickup", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("dropoff", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("timeline", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status IN ('PENDING', 'OFFERED', 'ASSIGNED', 'PICKED_UP', 'DELIVERED', 'CANCELLED', 'NEEDS_ATTENTION')",
            name=op.f("deliveries_status_check"),
        ),
        sa.ForeignKeyConstraint(["order_id"], ["orders.order_id"], name=op.f("deliveries_order_id_fkey")),
        sa.PrimaryKeyConstraint("delivery_id", name=op.f("deliveries_pkey")),
        sa.UniqueConstraint("order_id", name=op.f("deliveries_order_id_key")),
    )
    op.create_index(
        "deliveries_open_by_zone",
        "deliveries",
        ["zone", "status"],
        unique=False,
        postgresql_where=sa.text("status IN ('PENDING', 'OFFERED', 'ASSIGNED', 'PICKED_UP', 'NEEDS_ATTENTION')"),
    )
    op.create_table(
        "outbox_claims",
        sa.Column("shard", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("endpoint_id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("positions", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("passed_lane", sa.Text(), nullable=True),
        sa.Column("passed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("shard", "endpoint_id", name=op.f("outbox_claims_pkey")),
    )
    op.create_table(
        "outbox_failures",
        sa.Column("endpoint_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_position", sa.BigInteger(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error_class", sa.Text(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Column("failed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("workflow_started_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('PENDING', 'RETRYING', 'FAILED', 'DELIVERED', 'IGNORED')",
            name=op.f("outbox_failures_status_check"),
        ),
        sa.PrimaryKeyConstraint("endpoint_id", "position", name=op.f("outbox_failures_pkey")),
    )
    op.create_index(
        "outbox_failures_blocked_lanes",
        "outbox_failures",
        ["endpoint_id", "lane"],
        unique=True,
        postgresql_where=sa.text("status IN ('RETRYING', 'FAILED')"),
    )
    op.create_index(
        "outbox_failures_newest",
        "outbox_failures",
        [
            "status",
            sa.literal_column("failed_at DESC"),
            sa.literal_column("position DESC"),
            sa.literal_column("endpoint_id DESC"),
        ],
        unique=False,
    )
    op.create_index(
        "outbox_failures_without_workflow",
        "outbox_failures",
        ["shard"],
        unique=False,
        postgresql_where=sa.text("status = 'RETRYING' AND workflow_started_at IS NULL"),
    )
    op.create_table(
        "outbox_messages",
        sa.Column("shard", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("endpoint_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_position", sa.BigInteger(), nullable=False),
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("ready_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("shard", "endpoint_id", "position", name=op.f("outbox_messages_pkey")),
    )
    op.create_table(
        "outbox_parked",
        sa.Column("endpoint_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_position", sa.BigInteger(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("parked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("endpoint_id", "position", name=op.f("outbox_parked_pkey")),
    )
    op.create_index("outbox_parked_lane", "outbox_parked", ["endpoint_id", "lane", "position"], unique=False)
    op.create_table(
        "reservations",
        sa.Column("reservation_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('ACTIVE', 'COMMITTED', 'RELEASED', 'EXPIRED')", name=op.f("reservations_status_check")
        ),
        sa.CheckConstraint("quantity > 0", name=op.f("reservations_quantity_check")),
        sa.ForeignKeyConstraint(["order_id"], ["orders.order_id"], name=op.f("reservations_order_id_fkey")),
        sa.ForeignKeyConstraint(["sku"], ["products.sku"], name=op.f("reservations_sku_fkey")),
        sa.PrimaryKeyConstraint("reservation_id", name=op.f("reservations_pkey")),
        sa.UniqueConstraint("order_id", "sku", name=op.f("reservations_order_id_sku_key")),
    )
    op.create_index(
        "reservations_active_by_deadline",
        "reservations",
        ["expires_at", "reservation_id"],
        unique=False,
        postgresql_where=sa.text("status = 'ACTIVE'"),
    )
    op.create_index(
        "reservations_active_by_sku",
        "reservations",
        ["sku"],
        unique=False,
        postgresql_include=["quantity"],
        postgresql_where=sa.text("status = 'ACTIVE'"),
    )
    op.create_table(
        "stock_ledger",
        sa.Column("entry_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("movement", sa.Text(), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("before", sa.Integer(), nullable=False),
        sa.Column("after", sa.Integer(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("order_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["sku"], ["products.sku"], name=op.f("stock_ledger_sku_fkey")),
        sa.PrimaryKeyConstraint("entry_id", name=op.f("stock_ledger_pkey")),
    )
    op.create_index("stock_ledger_sku", "stock_ledger", ["sku", "entry_id"], unique=False)
