"""Where counters and rows disagree, and setting them right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.inventory.products import book
from db.ops import record_action
from db.outbox.write import write_events
from domain.inventory import StockMovement
from domain.outbox import EventType, inventory_event

# One statement is one snapshot: a reservation and its counter commit together, so load alone never shows as drift.
_DRIFTED = """
    SELECT p.sku, p.stock, p.reserved, p.ledger_stock, COALESCE(held.quantity, 0) AS expected_reserved
    FROM products p
    LEFT JOIN (
        SELECT sku, CAST(sum(quantity) AS int) AS quantity FROM reservations WHERE status = 'ACTIVE' GROUP BY sku
    ) held ON held.sku = p.sku
    WHERE p.reserved <> COALESCE(held.quantity, 0) OR p.stock <> p.ledger_stock
"""
_DRIFT = text(_DRIFTED + " ORDER BY p.sku")
_DRIFTED_SKUS = text(f"""
    SELECT sku FROM ({_DRIFTED}) AS drifted
    WHERE sku > :after AND (CAST(:among AS text[]) IS NULL OR sku = ANY(CAST(:among AS text[])))
    ORDER BY sku LIMIT :limit
""")
_DRIFT_TOTALS = text(f"""
    SELECT count(*) FILTER (WHERE reserved <> expected_reserved) AS products,
        CAST(COALESCE(sum(abs(reserved - expected_reserved)), 0) AS bigint) AS quantity
    FROM ({_DRIFTED}) AS drifted
""")
_HELD_BY = text("""
    SELECT reservation_id, order_id, sku, quantity, expires_at FROM reservations
    WHERE status = 'ACTIVE' AND sku = ANY(CAST(:skus AS text[])) ORDER BY reservation_id
""")


async def drifted_products(connection: AsyncConnection) -> Sequence[Row[Any]]:
    """Products whose reserved stock is not the sum of their holds, or whose stock is not what the ledger says."""
    return (await connection.execute(_DRIFT)).all()


async def drifted_skus(
    connection: AsyncConnection, among: Sequence[str] | None, after_sku: str, limit: int
) -> list[str]:
    """The next drifted products by SKU, of all or of those named."""
    parameters = {"among": list(among) if among is not None else None, "after": after_sku, "limit": limit}
    return [row.sku for row in await connection.execute(_DRIFTED_SKUS, parameters)]


async def active_reservations(connection: AsyncConnection, skus: Sequence[str]) -> Sequence[Row[Any]]:
    """The holds behind these products."""
    return (await connection.execute(_HELD_BY, {"skus": list(skus)})).all()


async def drift_totals(connection: AsyncConnection) -> Row[Any]:
    """`products` whose reserved stock drifted, and by what `quantity` together, signs put aside."""
    return (await connection.execute(_DRIFT_TOTALS)).one()


# --- reconcile

_BEGIN = text("""
    INSERT INTO reconciliations (operation_id, dry_run, skus, actor, reason)
    VALUES (:operation_id, :dry_run, CAST(:skus AS text[]), :actor, :reason)
""")
_GET = text("SELECT * FROM reconciliations WHERE operation_id = :operation_id")
_CORRECTIONS = text("SELECT * FROM corrections WHERE operation_id = :operation_id ORDER BY sku")
_FINISH = text("""
    UPDATE reconciliations SET status = 'DONE', finished_at = now()
    WHERE operation_id = :operation_id AND status = 'RUNNING'
""")


async def begin_reconciliation(
    connection: AsyncConnection,
    operation_id: str,
    *,
    dry_run: bool,
    skus: Sequence[str] | None,
    actor: str,
    reason: str,
) -> None:
    """Write down what is asked for, and by whom, before it is started."""
    asked = {"dry_run": dry_run, "skus": list(skus) if skus is not None else None}
    await connection.execute(_BEGIN, {"operation_id": operation_id, **asked, "actor": actor, "reason": reason})
    await record_action(
        connection, actor, "inventory.reconcile", f"reconciliation:{operation_id}", reason, before=None, after=asked
    )


async def get_reconciliation(
    connection: AsyncConnection, operation_id: str
) -> tuple[Row[Any], Sequence[Row[Any]]] | None:
    """A reconciliation and its corrections so far."""
    row = (await connection.execute(_GET, {"operation_id": operation_id})).one_or_none()
    if row is None:
        return None
    return row, (await connection.execute(_CORRECTIONS, {"operation_id": operation_id})).all()


_TOTAL = text(f"""
    SELECT count(*) FROM (
        SELECT sku FROM corrections WHERE operation_id = :operation_id
        UNION SELECT sku FROM ({_DRIFTED}) AS drifted
        WHERE CAST(:among AS text[]) IS NULL OR sku = ANY(CAST(:among AS text[]))
    ) AS concerned
""")


async def products_to_reconcile(connection: AsyncConnection, reconciliation: Row[Any]) -> int:
    """How many products a running reconciliation has looked at or will: the corrected and those that drift still."""
    asked = {"operation_id": reconciliation.operation_id, "among": reconciliation.skus}
    total: int = (await connection.execute(_TOTAL, asked)).scalar_one()
    return total


async def finish_reconciliation(connection: AsyncConnection, operation_id: str) -> None:
    """Every product has been looked at."""
    await connection.execute(_FINISH, {"operation_id": operation_id})


_FAIL = text("""
    UPDATE reconciliations SET status = 'FAILED', finished_at = now()
    WHERE operation_id = :operation_id AND status = 'RUNNING'
""")


async def fail_reconciliation(connection: AsyncConnection, operation_id: str) -> None:
    """It could not be started: ask for it again."""
    await connection.execute(_FAIL, {"operation_id": operation_id})


_LOCK = text("SELECT stock, reserved, ledger_stock FROM products WHERE sku = :sku FOR NO KEY UPDATE")
_HELD = text("""
    SELECT CAST(COALESCE(sum(quantity), 0) AS int) FROM reservations WHERE sku = :sku AND status = 'ACTIVE'
""")
_CORRECT = text("""
    UPDATE products SET reserved = :reserved, stock = :stock, ledger_stock = :stock, updated_at = now() WHERE sku = :sku
""")
_LOG_CORRECTION = text("""
    INSERT INTO corrections (operation_id, sku, reserved_before, reserved_after, ledger_before, ledger_after, applied)
    VALUES (:operation_id, :sku, :reserved_before, :reserved_after, :ledger_before, :ledger_after, :applied)
    ON CONFLICT (operation_id, sku) DO NOTHING RETURNING sku
""")


async def reconcile_product(connection: AsyncConnection, reconciliation: Row[Any], sku: str) -> None:
    """Set one product right, recomputed under its lock; a dry run only logs what would change.

    An edit of `stock` by hand is taken as true and booked. Holds for more than the stock can only follow from such an
    edit, and are promises already made: the stock is then booked up to them. Running again changes nothing more.
    """
    product = (await connection.execute(_LOCK, {"sku": sku})).one_or_none()
    if product is None:
        return
    held: int = (await connection.execute(_HELD, {"sku": sku})).scalar_one()
    stock = max(product.stock, held)
    if product.reserved == held and product.ledger_stock == stock == product.stock:
        return
    correction = {
        "operation_id": reconciliation.operation_id,
        "sku": sku,
        "reserved_before": product.reserved,
        "reserved_after": held,
        "ledger_before": product.ledger_stock,
        "ledger_after": stock,
        "applied": not reconciliation.dry_run,
    }
    if await connection.scalar(_LOG_CORRECTION, correction) is None or reconciliation.dry_run:
        return
    await connection.execute(_CORRECT, {"sku": sku, "reserved": held, "stock": stock})
    before = {"reservedStock": product.reserved, "stock": product.stock, "ledgerStock": product.ledger_stock}
    after = {"reservedStock": held, "stock": stock, "ledgerStock": stock}
    actor, reason = reconciliation.actor, reconciliation.reason
    if stock != product.ledger_stock:
        movement = StockMovement.RECONCILED
        await book(connection, sku, movement, product.ledger_stock, stock, actor=actor, reason=reason)
    await record_action(connection, actor, "inventory.correct", f"product:{sku}", reason, before=before, after=after)
    data = {"operationId": reconciliation.operation_id, "before": before, "after": after, "reason": reason}
    await write_events(connection, [inventory_event(EventType.INVENTORY_RECONCILED, sku, data)])
