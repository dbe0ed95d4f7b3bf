"""Products, as admins set them and clients read them, and the ledger of why their stock changed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.ops import record_action
from db.outbox.write import write_events
from domain.inventory import StockMovement
from domain.outbox import EventType, inventory_event


class StockBelowReserved(Exception):
    """The stock asked for is less than what is reserved."""

    def __init__(self, sku: str, reserved: int) -> None:
        super().__init__(f"{reserved} of {sku} are reserved")
        self.sku, self.reserved = sku, reserved


_INSERT_PRODUCT = text("""
    INSERT INTO products (sku, name, stock, ledger_stock) VALUES (:sku, :name, :stock, :stock)
    ON CONFLICT (sku) DO NOTHING RETURNING sku
""")
_LOCK_PRODUCT = text("SELECT name, stock, reserved, ledger_stock FROM products WHERE sku = :sku FOR NO KEY UPDATE")
_UPDATE_PRODUCT = text("""
    UPDATE products SET name = :name, stock = :stock, ledger_stock = :stock, updated_at = now() WHERE sku = :sku
""")
_INSERT_LEDGER = text("""
    INSERT INTO stock_ledger (sku, movement, quantity, before, after, actor, reason)
    VALUES (:sku, :movement, CAST(:after AS int) - CAST(:before AS int), :before, :after, :actor, :reason)
""")


async def book(
    connection: AsyncConnection,
    sku: str,
    movement: StockMovement,
    before: int,
    after: int,
    *,
    actor: str,
    reason: str | None,
) -> None:
    """Write into the ledger that a product's stock went from `before` to `after` units by somebody's decision."""
    entry = {"sku": sku, "movement": movement, "before": before, "after": after, "actor": actor, "reason": reason}
    await connection.execute(_INSERT_LEDGER, entry)


async def put_product(
    connection: AsyncConnection, sku: str, name: str, stock: int, *, actor: str, reason: str | None
) -> bool:
    """Set a product's name and stock, as a recorded adjustment; answer whether it was made.

    Raises StockBelowReserved.
    """
    created = await connection.scalar(_INSERT_PRODUCT, {"sku": sku, "name": name, "stock": stock}) is not None
    before: dict[str, Any] | None = None
    ledger_before = 0
    if not created:
        row = (await connection.execute(_LOCK_PRODUCT, {"sku": sku})).one()
        if stock < row.reserved:
            raise StockBelowReserved(sku, row.reserved)
        before, ledger_before = {"name": row.name, "stock": row.stock}, row.ledger_stock
        await connection.execute(_UPDATE_PRODUCT, {"sku": sku, "name": name, "stock": stock})
    after = {"name": name, "stock": stock}
    if stock != ledger_before:
        await book(connection, sku, StockMovement.ADJUSTED, ledger_before, stock, actor=actor, reason=reason)
    stock_before = before["stock"] if before else 0
    if stock != stock_before:
        data = {"name": name, "stockBefore": stock_before, "stock": stock, "reason": reason}
        await write_events(connection, [inventory_event(EventType.INVENTORY_ADJUSTED, sku, data)])
    await record_action(connection, actor, "product.put", f"product:{sku}", reason, before=before, after=after)
    return created


@dataclass(frozen=True)
class Product:
    """A product as it is read; counts are units."""

    sku: str
    name: str
    stock: int
    reserved: int
    created_at: datetime


_PRODUCTS = text("""
    SELECT sku, name, stock, reserved, created_at FROM products
    WHERE CAST(:after_time AS timestamptz) IS NULL OR (created_at, sku) < (:after_time, :after_sku)
    ORDER BY created_at DESC, sku DESC LIMIT :limit
""")
_PRODUCTS_BY_SKU = text("""
    SELECT sku, name, stock, reserved, created_at FROM products WHERE sku = ANY(CAST(:skus AS text[]))
""")


async def get_products(connection: AsyncConnection, skus: Collection[str]) -> dict[str, Product]:
    """The products of these SKUs that exist."""
    rows = await connection.execute(_PRODUCTS_BY_SKU, {"skus": list(skus)})
    return {row.sku: Product(**row._mapping) for row in rows}


async def list_products(connection: AsyncConnection, after: tuple[datetime, str] | None, limit: int) -> list[Product]:
    """A page of products, newest first."""
    time, sku = after or (None, None)
    rows = await connection.execute(_PRODUCTS, {"after_time": time, "after_sku": sku, "limit": limit})
    return [Product(**row._mapping) for row in rows]
