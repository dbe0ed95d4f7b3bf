"""Orders that race each other on many connections: one outcome each, and counters that add up."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter

import pytest

from db.inventory.products import StockBelowReserved
from domain.order import OrderState, OrderStatus
from tests.db.shops import Shop

SEEDS = [1, 2, 3]


@pytest.mark.parametrize(("buyers", "stock", "quantity"), [(40, 1, 1), (40, 7, 1), (40, 10, 3)])
async def test_racing_buyers_never_get_more_than_there_is(shop: Shop, buyers: int, stock: int, quantity: int) -> None:
    await shop.put("tea", stock)
    states = await asyncio.gather(*(shop.reserve(f"o-{number}", {"tea": quantity}) for number in range(buyers)))
    served = stock // quantity
    assert Counter(state.stage for state in states) == {
        OrderStatus.RESERVED: served,
        OrderStatus.REJECTED: buyers - served,
    }
    assert await shop.stock("tea") == (stock, served * quantity)
    assert await shop.value("SELECT count(*) FROM reservations") == served
    assert await shop.value("SELECT count(*) FROM outbox_events WHERE event_type = 'waybill.order.reserved'") == served
    await shop.holds_together()


async def test_one_order_asked_for_many_times_at_once_is_one_order(shop: Shop) -> None:
    await shop.put("tea", 100)
    states = await asyncio.gather(*(shop.reserve("o-1", {"tea": 3}) for _ in range(20)))
    assert {state.stage for state in states} == {OrderStatus.RESERVED}
    assert await shop.stock("tea") == (100, 3)
    assert await shop.events("order:o-1") == ["order.reserved"]
    await shop.holds_together()


@pytest.mark.parametrize("seed", SEEDS)
async def test_orders_that_list_products_in_opposite_order_never_deadlock(shop: Shop, seed: int) -> None:
    shuffled = random.Random(seed)
    skus = [f"sku-{number}" for number in range(6)]
    for sku in skus:
        await shop.put(sku, 1000)

    async def trip(number: int) -> None:
        order_id, wanted = f"o-{number}", shuffled.sample(skus, 6)
        end = shuffled.choice(["cancel", "confirm", "expire", "confirm and cancel"])
        await shop.reserve(order_id, [(sku, 1) for sku in wanted])
        if end == "expire":
            await shop.overdue(order_id)
        for command in end.split(" and "):
            await shop.do(command, order_id)

    await asyncio.gather(*(trip(number) for number in range(40)))
    assert shop.database.retried == 0
    await shop.holds_together()


@pytest.mark.parametrize("seed", SEEDS)
async def test_confirm_cancel_and_expire_racing_on_one_order_have_one_outcome(shop: Shop, seed: int) -> None:
    shuffled = random.Random(seed)
    await shop.put("cup", 1000)
    await shop.put("tea", 1000)
    rounds = 70
    for number in range(rounds):
        order_id = f"o-{number}"
        await shop.reserve(order_id, [("tea", 2), ("cup", 1)])
        if overdue := number % 2 == 1:
            await shop.overdue(order_id)
        commands = ["confirm", "cancel", "expire", "extend"] * 2
        shuffled.shuffle(commands)
        states = await asyncio.gather(*(shop.do(command, order_id) for command in commands))
        have_one_outcome(list(zip(commands, states, strict=True)), overdue=overdue)
    assert shop.database.retried == 0
    stocks = await shop.sql("SELECT sku, stock, reserved FROM products ORDER BY sku")
    assert stocks == [("cup", 1000, 0), ("tea", 1000, 0)]
    await shop.holds_together()


def have_one_outcome(answers: list[tuple[str, OrderState]], *, overdue: bool) -> None:
    """Assert that what the racers were told belongs to one story."""
    done = [(command, state.stage) for command, state in answers if state.refusal is None]
    if overdue:
        assert {stage for _, stage in done} == {OrderStatus.EXPIRED}
        assert {command for command, _ in done} == {"expire"}
        return
    # A cancel is possible after a confirm, so it always wins in the end; nothing else may end this order.
    assert done.count(("cancel", OrderStatus.CANCELLED)) == 2
    assert {stage for command, stage in done if command == "confirm"} <= {OrderStatus.CONFIRMED}
    assert not [stage for _, stage in done if stage is OrderStatus.EXPIRED]


async def test_a_deadline_that_races_its_extension_has_one_outcome(shop: Shop) -> None:
    await shop.put("tea", 100)
    for number in range(20):
        order_id = f"o-{number}"
        await shop.reserve(order_id, {"tea": 1}, hold_seconds=3600)
        await shop.sql(
            "UPDATE reservations SET expires_at = clock_timestamp() + interval '2 milliseconds' WHERE order_id = :id",
            id=order_id,
        )
        extended, expired = await asyncio.gather(shop.extend(order_id, 3600), shop.expire(order_id))
        if extended.refusal is None:
            assert expired.stage is OrderStatus.RESERVED
            assert await shop.status(order_id) == "RESERVED"
        else:
            assert extended.stage is OrderStatus.EXPIRED
            assert await shop.status(order_id) == "EXPIRED"
    await shop.holds_together()


async def test_stock_set_while_buyers_race_is_never_below_what_they_hold(shop: Shop) -> None:
    await shop.put("tea", 20)

    async def restock(number: int) -> None:
        held = await shop.value("SELECT reserved FROM products WHERE sku = 'tea'")
        with contextlib.suppress(StockBelowReserved):
            await shop.put("tea", held + number % 3)

    async def buy(number: int) -> None:
        if (await shop.reserve(f"o-{number}", {"tea": 1})).stage is OrderStatus.RESERVED and number % 2:
            await shop.confirm(f"o-{number}")

    await asyncio.gather(*(work(number) for number in range(25) for work in (restock, buy)))
    await shop.holds_together()


async def test_no_drift_shows_while_writers_work(shop: Shop) -> None:
    await shop.put("tea", 1000)
    await shop.put("cup", 1000)
    working = True

    async def look() -> int:
        looks = 0
        while working:
            assert await shop.drift() == {}
            looks += 1
        return looks

    async def trade(number: int) -> None:
        order_id = f"o-{number}"
        await shop.reserve(order_id, [("tea", 1), ("cup", 2)])
        await shop.do("confirm" if number % 2 else "cancel", order_id)

    looking = asyncio.create_task(look())
    await asyncio.gather(*(trade(number) for number in range(60)))
    working = False
    assert await looking > 0
    await shop.holds_together()
