"""Reservations, and the counters of the products that they hold.

Lock order everywhere: order → products (by SKU) → couriers (by id) → deliveries (by id) → outbox (its own order:
`db/outbox/__init__.py`). Counters move by relative updates, and only when the reservation's row moved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.ops import record_action
from domain.inventory import ReservationStatus, StockMovement

_LOCK = text("""
    SELECT sku, stock - reserved AS available FROM products
    WHERE sku = ANY(CAST(:skus AS text[])) ORDER BY sku FOR NO KEY UPDATE
""")


async def lock_products(connection: AsyncConnection, skus: Collection[str]) -> dict[str, int]:
    """Lock the products in the house's order; answer what is available of each that exists."""
    rows = await connection.execute(_LOCK, {"skus": sorted(skus)})
    return {row.sku: row.available for row in rows}


_HOLD = text("""
    UPDATE products p SET reserved = p.reserved + l.quantity, updated_at = now()
    FROM unnest(CAST(:skus AS text[]), CAST(:quantities AS int[])) AS l(sku, quantity)
    WHERE p.sku = l.sku AND p.stock - p.reserved >= l.quantity
""")
_INSERT_RESERVATIONS = text("""
    INSERT INTO reservations (order_id, sku, quantity, status, expires_at)
    SELECT :order_id, l.sku, l.quantity, 'ACTIVE', statement_timestamp() + make_interval(secs => :hold_seconds)
    FROM unnest(CAST(:skus AS text[]), CAST(:quantities AS int[])) AS l(sku, quantity)
""")


async def hold(connection: AsyncConnection, order_id: str, quantities: Mapping[str, int], hold_seconds: int) -> None:
    """Reserve all of it for the order. The caller has locked the products and seen that there is enough."""
    lines = {"skus": list(quantities), "quantities": list(quantities.values())}
    held = await connection.execute(_HOLD, lines)
    if held.rowcount != len(quantities):
        raise AssertionError(f"products of order {order_id} changed under their lock")
    await connection.execute(_INSERT_RESERVATIONS, {**lines, "order_id": order_id, "hold_seconds": float(hold_seconds)})


_CLOSE = text("""
    UPDATE reservations SET status = :after, closed_at = clock_timestamp()
    WHERE order_id = :order_id AND status = :before
    RETURNING sku, quantity
""")
# On a product whose counters have drifted the result is clamped: a release must never fail, the drift view shows it.
_MOVE = text("""
    WITH line AS (
        SELECT * FROM unnest(CAST(:skus AS text[]), CAST(:quantities AS int[])) AS l(sku, quantity)
    ), moved AS (
        UPDATE products p SET
            stock = GREATEST(p.stock + :stock * l.quantity, 0),
            reserved = LEAST(
                GREATEST(p.reserved + :reserved * l.quantity, 0), GREATEST(p.stock + :stock * l.quantity, 0)),
            ledger_stock = p.ledger_stock + :stock * l.quantity,
            updated_at = now()
        FROM line l WHERE p.sku = l.sku
        RETURNING p.sku, l.quantity, p.ledger_stock
    )
    INSERT INTO stock_ledger (sku, movement, quantity, before, after, actor, order_id)
    SELECT sku, :movement, :stock * quantity, ledger_stock - :stock * quantity, ledger_stock, 'order', :order_id
    FROM moved WHERE CAST(:stock AS int) <> 0
""")

_SIGNS: dict[tuple[ReservationStatus, ReservationStatus], tuple[int, int, StockMovement | None]] = {
    # (before, after): how a unit moves stock, how it moves reserved stock, what the ledger calls it
    (ReservationStatus.ACTIVE, ReservationStatus.COMMITTED): (-1, -1, StockMovement.COMMITTED),
    (ReservationStatus.ACTIVE, ReservationStatus.RELEASED): (0, -1, None),
    (ReservationStatus.ACTIVE, ReservationStatus.EXPIRED): (0, -1, None),
    (ReservationStatus.COMMITTED, ReservationStatus.RELEASED): (1, 0, StockMovement.RETURNED),
}


async def close_reservations(
    connection: AsyncConnection, order_id: str, before: ReservationStatus, after: ReservationStatus
) -> None:
    """Take the order's reservations from one state to the next, and the counters of their products with them."""
    rows = await connection.execute(_CLOSE, {"order_id": order_id, "before": before, "after": after})
    quantities = {row.sku: row.quantity for row in rows}
    if not quantities:
        return
    stock, reserved, movement = _SIGNS[before, after]
    await lock_products(connection, quantities)
    await connection.execute(
        _MOVE,
        {
            "skus": list(quantities),
            "quantities": list(quantities.values()),
            "stock": stock,
            "reserved": reserved,
            "movement": movement,
            "order_id": order_id,
        },
    )


_SECONDS_LEFT = text("""
    SELECT CAST(extract(epoch FROM min(expires_at) - clock_timestamp()) AS float8)
    FROM reservations WHERE order_id = :order_id AND status = 'ACTIVE'
""")


async def seconds_left(connection: AsyncConnection, order_id: str) -> float:
    """Until the hold's deadline, by the database's clock; 0 when nothing is held any more."""
    seconds: float | None = await connection.scalar(_SECONDS_LEFT, {"order_id": order_id})
    return seconds or 0.0


_EXTEND = text("""
    UPDATE reservations
    SET expires_at = GREATEST(expires_at, statement_timestamp() + make_interval(secs => :hold_seconds))
    WHERE order_id = :order_id AND status = 'ACTIVE'
""")


async def extend_hold(connection: AsyncConnection, order_id: str, hold_seconds: int) -> None:
    """Move the hold's deadline to that many seconds from now, never to an earlier moment."""
    await connection.execute(_EXTEND, {"order_id": order_id, "hold_seconds": float(hold_seconds)})


# --- stuck holds

_OVERDUE = text("""
    SELECT order_id FROM reservations
    WHERE status = 'ACTIVE' AND expires_at < statement_timestamp() - make_interval(secs => :grace_seconds)
    GROUP BY order_id ORDER BY min(expires_at) LIMIT :limit
""")


async def overdue_orders(connection: AsyncConnection, grace_seconds: float, limit: int) -> list[str]:
    """Orders whose hold is past its deadline by more than the grace, the oldest first."""
    rows = await connection.execute(_OVERDUE, {"grace_seconds": float(grace_seconds), "limit": limit})
    return [row.order_id for row in rows]


@dataclass(frozen=True)
class StuckReservation:
    """A hold that outlived its deadline by more than the grace."""

    reservation_id: int
    order_id: str
    sku: str
    quantity: int
    expires_at: datetime
    overdue_seconds: float


_STUCK = text("""
    SELECT reservation_id, order_id, sku, quantity, expires_at,
        CAST(extract(epoch FROM clock_timestamp() - expires_at) AS float8) AS overdue_seconds
    FROM reservations
    WHERE status = 'ACTIVE' AND expires_at < statement_timestamp() - make_interval(secs => :grace_seconds)
        AND (CAST(:after_time AS timestamptz) IS NULL OR (expires_at, reservation_id) < (:after_time, :after_id))
    ORDER BY expires_at DESC, reservation_id DESC LIMIT :limit
""")


async def stuck_reservations(
    connection: AsyncConnection, grace_seconds: float, after: tuple[datetime, int] | None, limit: int
) -> list[StuckReservation]:
    """A page of stuck holds, the newest deadline first."""
    time, reservation_id = after or (None, None)
    parameters = {
        "grace_seconds": float(grace_seconds),
        "after_time": time,
        "after_id": reservation_id,
        "limit": limit,
    }
    return [StuckReservation(**row._mapping) for row in await connection.execute(_STUCK, parameters)]


async def record_sweep(connection: AsyncConnection, operation_id: str, *, actor: str, reason: str | None) -> None:
    """Write down that an admin asked for a sweep."""
    await record_action(
        connection, actor, "reservations.sweep", f"sweep:{operation_id}", reason, before=None, after=None
    )
