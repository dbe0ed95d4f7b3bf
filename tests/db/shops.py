"""The database as the floors above use it: one call is one transaction; and what must be true of it at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import ops
from db import order as orders
from db.engine import Database
from db.inventory import drift, products
from domain.order import Line, NewOrder, OrderState, Place
from domain.outbox import EventType

LEGAL_LANES: tuple[list[str], ...] = (
    [],
    ["order.reserved"],
    ["order.reserved", "order.expired"],
    ["order.reserved", "order.cancelled"],
    ["order.reserved", "order.confirmed", "delivery.requested"],
    ["order.reserved", "order.confirmed", "delivery.requested", "order.cancelled", "delivery.cancelled"],
)
"""Every way in which the events of one order may follow each other."""


def new_order(
    order_id: str, lines: Mapping[str, int] | Sequence[tuple[str, int]], *, hold_seconds: int = 900
) -> NewOrder:
    """A request for an order; lines as pairs where one SKU comes twice."""
    pairs = lines.items() if isinstance(lines, Mapping) else lines
    return NewOrder(
        order_id=order_id,
        request_hash=f"hash of {order_id}",
        customer_id="c-1",
        zone="north",
        lines=[Line(sku, quantity) for sku, quantity in pairs],
        dropoff=Place(52.5, 13.4),
        hold_seconds=hold_seconds,
    )


@dataclass(frozen=True)
class Shop:
    """One database."""

    database: Database

    async def put(self, sku: str, stock: int, name: str | None = None) -> bool:
        """Set a product's stock."""
        return await self.database.transact(
            lambda c: products.put_product(c, sku, name or sku.title(), stock, actor="admin", reason="count")
        )

    async def reserve(
        self, order_id: str, lines: Mapping[str, int] | Sequence[tuple[str, int]], *, hold_seconds: int = 900
    ) -> OrderState:
        """Reserve a new order."""
        order = new_order(order_id, lines, hold_seconds=hold_seconds)
        return await self.database.transact(lambda c: orders.reserve(c, order))

    async def confirm(self, order_id: str) -> OrderState:
        """Confirm an order."""
        return await self.database.transact(lambda c: orders.confirm(c, order_id, 3600))

    async def cancel(self, order_id: str) -> OrderState:
        """Cancel an order."""
        return await self.database.transact(lambda c: orders.cancel(c, order_id))

    async def extend(self, order_id: str, hold_seconds: int = 900) -> OrderState:
        """Extend an order's hold."""
        return await self.database.transact(lambda c: orders.extend(c, order_id, hold_seconds))

    async def expire(self, order_id: str, *, outside: bool = False) -> OrderState:
        """Expire an order, if it is overdue."""
        return await self.database.transact(lambda c: orders.expire(c, order_id, outside=outside))

    async def do(self, command: str, order_id: str) -> OrderState:
        """One of the above, by its name."""
        state: OrderState = await getattr(self, command)(order_id)
        return state

    async def overdue(self, order_id: str) -> None:
        """Put the deadline of an order's hold into the past."""
        await self.sql(
            "UPDATE reservations SET expires_at = now() - interval '1 minute' WHERE order_id = :id", id=order_id
        )

    async def sql(self, statement: str, **parameters: Any) -> list[Any]:
        """Run a statement by hand, as an operator would."""

        async def run(connection: AsyncConnection) -> list[Any]:
            result = await connection.execute(text(statement), parameters)
            return list(result.all()) if result.returns_rows else []

        return await self.database.transact(run)

    async def value(self, statement: str, **parameters: Any) -> Any:
        """The one value that a statement answers."""
        ((value,),) = await self.sql(statement, **parameters)
        return value

    async def stock(self, sku: str) -> tuple[int, int]:
        """A product's stock and reserved stock."""
        ((stock, reserved),) = await self.sql("SELECT stock, reserved FROM products WHERE sku = :sku", sku=sku)
        return stock, reserved

    async def status(self, order_id: str) -> str:
        """An order's status."""
        return str(await self.value("SELECT status FROM orders WHERE order_id = :id", id=order_id))

    async def events(self, lane: str) -> list[str]:
        """The types of a lane's events in their order, without the prefix."""
        rows = await self.sql("SELECT event_type FROM outbox_events WHERE lane = :lane ORDER BY position", lane=lane)
        assert {event_type for (event_type,) in rows} <= set(EventType)
        return [event_type.removeprefix("waybill.") for (event_type,) in rows]

    async def contents(self) -> dict[str, list[Any]]:
        """Every row of every table: what must be the same when something changed nothing."""
        tables = await self.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename")
        return {table: await self.sql(f'SELECT CAST(t AS text) FROM "{table}" t ORDER BY 1') for (table,) in tables}

    async def drift(self) -> dict[str, tuple[int, int, int, int]]:
        """Of each drifted product: stock, reserved, what reserved should be, what the ledger says of stock."""
        async with self.database.read() as connection:
            rows = await drift.drifted_products(connection)
        return {row.sku: (row.stock, row.reserved, row.expected_reserved, row.ledger_stock) for row in rows}

    async def holds_together(self) -> None:
        """Assert everything that must be true between any two transactions."""
        assert await self.drift() == {}
        async with self.database.read() as connection:
            checks = await ops.check_invariants(connection)
        assert [check for check in checks if check.violations] == []
        await self.ledger_explains_stock()
        await self.counts_are_right()
        await self.orders_and_reservations_agree()

    async def ledger_explains_stock(self) -> None:
        """Assert that the ledger's entries lead from nothing to each product's stock without a gap."""
        balance: dict[str, int] = {}
        for sku, quantity, before, after in await self.sql(
            "SELECT sku, quantity, before, after FROM stock_ledger ORDER BY entry_id"
        ):
            assert before == balance.get(sku, 0)
            assert after == before + quantity
            balance[sku] = after
        rows = await self.sql("SELECT sku, stock, ledger_stock FROM products")
        assert {sku: (stock, ledger) for sku, stock, ledger in rows} == {
            sku: (balance.get(sku, 0), balance.get(sku, 0)) for sku, _, _ in rows
        }

    async def counts_are_right(self) -> None:
        """Assert that the counters by status are what counting the rows answers."""
        for noun in ("orders", "reservations"):
            counted = await self.sql(
                "SELECT status, sum(total)::int FROM status_counts WHERE noun = :noun GROUP BY status"
                " HAVING sum(total) <> 0 ORDER BY status",
                noun=noun,
            )
            assert counted == await self.sql(
                f"SELECT status, count(*)::int FROM {noun} GROUP BY status ORDER BY status"
            )

    async def orders_and_reservations_agree(self) -> None:
        """Assert that no order is an orphan, that none ended two ways, and that its events tell one legal story."""
        pairs = await self.sql("""
            SELECT DISTINCT o.status, r.status FROM orders o LEFT JOIN reservations r USING (order_id)
        """)
        assert {tuple(pair) for pair in pairs} <= {
            ("RESERVED", "ACTIVE"),
            ("CONFIRMED", "COMMITTED"),
            ("CANCELLED", "RELEASED"),
            ("EXPIRED", "EXPIRED"),
            ("REJECTED", None),
        }
        lanes = await self.sql("""
            SELECT o.status, array_remove(array_agg(e.event_type ORDER BY e.position), NULL) FROM orders o
            LEFT JOIN outbox_events e ON e.lane = 'order:' || o.order_id GROUP BY o.order_id, o.status
        """)
        ends = {"RESERVED": {1}, "CONFIRMED": {4}, "CANCELLED": {3, 5}, "EXPIRED": {2}, "REJECTED": {0}}
        for status, types in lanes:
            assert LEGAL_LANES.index([each.removeprefix("waybill.") for each in types]) in ends[status]
