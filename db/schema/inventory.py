"""Products and the ledger of their stock, and the operations that set drifted counters right."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, ForeignKey, Index, Integer, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY

from db.schema.base import metadata, time

products = Table(
    "products",
    metadata,
    Column("sku", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("stock", Integer, nullable=False),
    Column("reserved", Integer, nullable=False, server_default="0"),
    # The balance of stock_ledger: an edit of `stock` by hand shows as a difference from it.
    Column("ledger_stock", Integer, nullable=False),
    time("created_at", default=True, nullable=False),
    time("updated_at", default=True, nullable=False),
    CheckConstraint("stock >= 0", name="stock"),
    CheckConstraint("0 <= reserved AND reserved <= stock", name="reserved"),
    Index("products_newest", text("created_at DESC"), text("sku DESC")),
    Index("products_off_ledger", "sku", postgresql_where=text("stock <> ledger_stock")),
)

stock_ledger = Table(
    "stock_ledger",
    metadata,
    Column("entry_id", BigInteger, primary_key=True, autoincrement=True),
    time("at", default=True, nullable=False),
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

reconciliations = Table(
    "reconciliations",
    metadata,
    Column("operation_id", Text, primary_key=True),
    Column("dry_run", Boolean, nullable=False),
    Column("skus", ARRAY(Text)),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="RUNNING"),
    time("created_at", default=True, nullable=False),
    time("finished_at"),
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
    time("at", default=True, nullable=False),
)
