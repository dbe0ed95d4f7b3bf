"""Any story of orders and products, beside a model of it in plain Python: they never disagree."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from db.engine import Database, create_engine
from db.inventory.products import StockBelowReserved
from domain.order import Refusal
from tests.db.shops import Shop

SKUS = ["cup", "pot", "tea"]
EMPTY = """
    TRUNCATE products, orders, reservations, stock_ledger, deliveries, outbox_events, outbox_messages, admin_actions
    CASCADE
"""


@dataclass
class ModelOrder:
    """An order as the model sees it."""

    lines: dict[str, int]
    status: str
    overdue: bool = False


@dataclass
class Model:
    """What the database should say."""

    stock: dict[str, int] = field(default_factory=dict)
    orders: dict[str, ModelOrder] = field(default_factory=dict)

    def held(self, sku: str) -> int:
        """Units that holds keep from others."""
        return sum(order.lines.get(sku, 0) for order in self.orders.values() if order.status == "RESERVED")

    def reserve(self, order_id: str, lines: dict[str, int]) -> str:
        """All or nothing."""
        enough = all(self.stock.get(sku, 0) - self.held(sku) >= quantity for sku, quantity in lines.items())
        self.orders[order_id] = ModelOrder(lines, "RESERVED" if enough else "REJECTED")
        return self.orders[order_id].status

    def command(self, command: str, order_id: str) -> tuple[str, str | None]:
        """The order's status after a command, and the refusal."""
        order = self.orders[order_id]
        if order.status == "RESERVED" and order.overdue:
            order.status = "EXPIRED"
            return "EXPIRED", None if command == "expire" else "hold-expired"
        if command == "expire":
            return order.status, None
        if (command, order.status) in [("confirm", "CONFIRMED"), ("cancel", "CANCELLED")]:
            return order.status, None
        if order.status == "RESERVED" or (command, order.status) == ("cancel", "CONFIRMED"):
            self.move(command, order)
            return order.status, None
        slugs = {"EXPIRED": "hold-expired", "REJECTED": "order-rejected"}
        return order.status, slugs.get(order.status, f"order-{order.status.lower()}")

    def move(self, command: str, order: ModelOrder) -> None:
        """Carry a possible command out."""
        sign = {("confirm", "RESERVED"): -1, ("cancel", "CONFIRMED"): 1}.get((command, order.status), 0)
        for sku, quantity in order.lines.items():
            self.stock[sku] += sign * quantity
        order.status = {"confirm": "CONFIRMED", "cancel": "CANCELLED"}.get(command, order.status)


class Machine(RuleBasedStateMachine):
    """Does the same to the database and to the model."""

    orders: Bundle[str] = Bundle("orders")

    def __init__(self, runner: asyncio.Runner, shop: Shop) -> None:
        super().__init__()
        self.run, self.shop, self.model = runner.run, shop, Model()
        self.run(shop.sql(EMPTY))
        self.run(shop.sql("UPDATE status_counts SET total = 0"))
        for sku in SKUS[:2]:
            self.put_product(sku, 5)

    @rule(sku=st.sampled_from(SKUS), stock=st.integers(0, 12))
    def put_product(self, sku: str, stock: int) -> None:
        """Set a stock; under what is held it is refused."""
        if stock < (held := self.model.held(sku)):
            with pytest.raises(StockBelowReserved) as caught:
                self.run(self.shop.put(sku, stock))
            assert caught.value.reserved == held
            return
        created = self.run(self.shop.put(sku, stock))
        assert created is (sku not in self.model.stock)
        self.model.stock[sku] = stock

    @rule(
        target=orders,
        lines=st.lists(st.tuples(st.sampled_from(SKUS), st.integers(1, 4)), min_size=1, max_size=4),
    )
    def reserve(self, lines: list[tuple[str, int]]) -> str:
        """Ask for an order."""
        order_id = f"o-{len(self.model.orders)}"
        wanted: dict[str, int] = {}
        for sku, quantity in lines:
            wanted[sku] = wanted.get(sku, 0) + quantity
        state = self.run(self.shop.reserve(order_id, lines))
        assert state.stage == self.model.reserve(order_id, wanted)
        return order_id

    @rule(order_id=orders)
    def ask_again(self, order_id: str) -> None:
        """The same order a second time, whatever became of it."""
        state = self.run(self.shop.reserve(order_id, self.model.orders[order_id].lines))
        assert state.stage == self.model.orders[order_id].status

    @rule(order_id=orders, command=st.sampled_from(["confirm", "cancel", "extend", "expire"]))
    def command(self, order_id: str, command: str) -> None:
        """Do something with an order."""
        state = self.run(self.shop.do(command, order_id))
        status, refusal = self.model.command(command, order_id)
        assert (state.stage, state.refusal) == (status, Refusal(refusal) if refusal else None)

    @rule(order_id=orders)
    def time_passes(self, order_id: str) -> None:
        """The hold's deadline is over."""
        self.run(self.shop.overdue(order_id))
        self.model.orders[order_id].overdue = True

    @invariant()
    def the_database_says_what_the_model_says(self) -> None:
        """Stocks, reserved stocks and statuses, row by row."""
        rows = self.run(self.shop.sql("SELECT sku, stock, reserved FROM products"))
        assert {sku: (stock, reserved) for sku, stock, reserved in rows} == {
            sku: (stock, self.model.held(sku)) for sku, stock in self.model.stock.items()
        }
        statuses = self.run(self.shop.sql("SELECT order_id, status FROM orders"))
        assert dict(map(tuple, statuses)) == {key: order.status for key, order in self.model.orders.items()}

    @invariant()
    def everything_holds_together(self) -> None:
        """No drift, no violation, every change explained."""
        self.run(self.shop.holds_together())


def test_no_story_of_orders_breaks_a_promise(database_url: str) -> None:
    with asyncio.Runner() as runner:
        database = Database(create_engine(database_url, pool_size=1, name="test"))
        try:
            run_state_machine_as_test(
                lambda: Machine(runner, Shop(database)),  # type: ignore[arg-type]  # a factory will do, says its manual
                settings=settings(
                    max_examples=12,
                    stateful_step_count=20,
                    derandomize=True,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(database.close())
