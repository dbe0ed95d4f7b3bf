"""Orders on products whose counters drifted: each goes its way, and reconciling afterwards leaves nothing amiss."""

from __future__ import annotations

import pytest

from db import order as orders
from domain.order import OrderState, OrderStatus, Refusal, Shortage
from tests.db.inventory.test_drift import reconcile
from tests.db.shops import Shop

# What a hand did to tea, of which 10 were in stock and 5 held: 3 by the order, 2 by another one.
DRIFTS = {
    "reserved too low": "reserved = 1",
    "reserved forgotten": "reserved = 0",
    "reserved too high": "reserved = 9",
    "reserved up to the stock": "reserved = 10",
    "stock under what is held": "stock = 2, reserved = 2",
    "stock gone": "stock = 0, reserved = 0",
}
DRIFTED = pytest.mark.parametrize("drift", DRIFTS)


async def held_then_drifted(shop: Shop, drift: str) -> None:
    """`o-1` holds tea and a healthy cup, `other` holds tea; then tea drifts."""
    await shop.put("tea", 10)
    await shop.put("cup", 10)
    await shop.reserve("o-1", {"tea": 3, "cup": 1})
    await shop.reserve("other", {"tea": 2})
    await shop.sql(f"UPDATE products SET {DRIFTS[drift]} WHERE sku = 'tea'")


async def reconciled(shop: Shop) -> None:
    """Assert that reconciling leaves nothing amiss: `other` still holds its units, and they can be had."""
    await reconcile(shop)
    await shop.holds_together()
    assert (await shop.confirm("other")).stage is OrderStatus.CONFIRMED
    await shop.holds_together()


@DRIFTED
@pytest.mark.parametrize("outside", [False, True], ids=["by its workflow", "by the sweep"])
async def test_a_hold_expires(shop: Shop, drift: str, outside: bool) -> None:
    await held_then_drifted(shop, drift)
    await shop.overdue("o-1")
    assert await shop.expire("o-1", outside=outside) == OrderState(OrderStatus.EXPIRED)
    assert await shop.events("order:o-1") == ["order.reserved", "order.expired"]
    assert await shop.stock("cup") == (10, 0)
    await reconciled(shop)


@DRIFTED
@pytest.mark.parametrize("command", ["confirm", "cancel", "extend"])
async def test_a_command_after_the_deadline_is_told_that_the_hold_ended(shop: Shop, drift: str, command: str) -> None:
    await held_then_drifted(shop, drift)
    await shop.overdue("o-1")
    assert await shop.do(command, "o-1") == OrderState(OrderStatus.EXPIRED, refusal=Refusal.HOLD_EXPIRED)
    assert await shop.stock("cup") == (10, 0)
    await reconciled(shop)


@DRIFTED
@pytest.mark.parametrize("story", [("cancel",), ("confirm",), ("confirm", "cancel")], ids=" then ".join)
async def test_a_hold_is_released_or_committed_and_returned(shop: Shop, drift: str, story: tuple[str, ...]) -> None:
    await held_then_drifted(shop, drift)
    for command in story:
        assert (await shop.do(command, "o-1")).refusal is None
    assert await shop.stock("cup") == ((9, 0) if story == ("confirm",) else (10, 0))
    await reconciled(shop)


@DRIFTED
async def test_a_hold_that_an_edit_left_behind_is_swept(shop: Shop, drift: str) -> None:
    await held_then_drifted(shop, drift)
    await shop.sql("UPDATE orders SET status = 'CANCELLED' WHERE order_id = 'o-1'")
    await shop.overdue("o-1")
    assert (await shop.expire("o-1", outside=True)).stage is OrderStatus.CANCELLED
    assert await shop.value("SELECT DISTINCT status FROM reservations WHERE order_id = 'o-1'") == "EXPIRED"
    assert await shop.stock("cup") == (10, 0)
    await reconcile(shop)
    assert await shop.drift() == {}


@pytest.mark.parametrize("drift", ["reserved up to the stock", "stock gone"])
async def test_a_new_order_is_rejected_where_counters_say_there_is_nothing(shop: Shop, drift: str) -> None:
    await held_then_drifted(shop, drift)
    assert await shop.reserve("late", {"tea": 1, "cup": 1}) == OrderState(
        OrderStatus.REJECTED, shortages=[Shortage("tea", 1, 0)]
    )
    assert await shop.stock("cup") == (10, 1)


async def test_holds_of_more_than_the_stock_are_promises_that_reconciling_keeps(shop: Shop) -> None:
    await held_then_drifted(shop, "reserved forgotten")
    assert (await shop.reserve("late", {"tea": 10})).stage is OrderStatus.RESERVED  # 15 are held of 10
    await reconcile(shop)
    await shop.holds_together()
    assert await shop.stock("tea") == (15, 15)
    for order_id in ("o-1", "other", "late"):
        assert (await shop.confirm(order_id)).stage is OrderStatus.CONFIRMED
    assert await shop.stock("tea") == (0, 0)
    await shop.holds_together()


async def test_a_transaction_on_a_drifted_product_that_fails_leaves_the_order_to_its_next_try(shop: Shop) -> None:
    await held_then_drifted(shop, "stock gone")

    async def cancel_and_fail(connection: object) -> None:
        await orders.cancel(connection, "o-1")  # type: ignore[arg-type]
        raise RuntimeError("the power failed")

    with pytest.raises(RuntimeError, match="the power failed"):
        await shop.database.transact(cancel_and_fail)
    assert await shop.status("o-1") == "RESERVED"
    assert (await shop.cancel("o-1")).refusal is None
    await reconciled(shop)
