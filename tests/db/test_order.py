"""Orders: all or nothing, one outcome, and nothing that happens twice."""

from __future__ import annotations

import pytest

from db import order as orders
from db.order import OrderMissing
from domain.order import OrderState, OrderStatus, Refusal, Shortage
from tests.db.shops import Shop, new_order

CONFIRMED = ["order.reserved", "order.confirmed", "delivery.requested"]


async def test_a_reserved_order_holds_its_units_and_says_so_once(shop: Shop) -> None:
    await shop.put("tea", 10)
    state = await shop.reserve("o-1", {"tea": 3}, hold_seconds=600)
    assert state == OrderState(OrderStatus.RESERVED, seconds_left=600.0)
    assert await shop.stock("tea") == (10, 3)
    assert await shop.events("order:o-1") == ["order.reserved"]
    await shop.holds_together()


async def test_an_order_that_cannot_be_had_whole_is_rejected_whole(shop: Shop) -> None:
    await shop.put("cup", 5)
    await shop.put("tea", 1)
    state = await shop.reserve("o-1", {"cup": 2, "pot": 1, "tea": 2})
    assert state == OrderState(OrderStatus.REJECTED, shortages=[Shortage("pot", 1, 0), Shortage("tea", 2, 1)])
    assert (await shop.stock("cup"), await shop.stock("tea")) == ((5, 0), (1, 0))
    assert await shop.value("SELECT count(*) FROM reservations") == 0
    assert await shop.events("order:o-1") == []
    await shop.holds_together()


async def test_two_lines_of_one_sku_are_one_demand(shop: Shop) -> None:
    await shop.put("tea", 3)
    rejected = await shop.reserve("o-1", [("tea", 2), ("tea", 2)])
    assert rejected == OrderState(OrderStatus.REJECTED, shortages=[Shortage("tea", 4, 3)])
    reserved = await shop.reserve("o-2", [("tea", 2), ("tea", 1)])
    assert reserved.stage is OrderStatus.RESERVED
    assert await shop.sql("SELECT order_id, sku, quantity FROM reservations") == [("o-2", "tea", 3)]
    assert await shop.stock("tea") == (3, 3)
    await shop.holds_together()


async def test_the_same_order_again_is_only_loaded(shop: Shop) -> None:
    await shop.put("tea", 3)
    await shop.reserve("o-1", {"tea": 2})
    await shop.reserve("o-2", {"tea": 2})
    before = await shop.contents()
    again = await shop.reserve("o-1", {"tea": 2})
    assert again.stage is OrderStatus.RESERVED
    assert again.seconds_left is not None
    assert 0 < again.seconds_left <= 900
    assert await shop.reserve("o-2", {"tea": 2}) == OrderState(OrderStatus.REJECTED, shortages=[Shortage("tea", 2, 1)])
    assert await shop.contents() == before


async def test_a_rejected_order_stays_rejected_when_stock_arrives(shop: Shop) -> None:
    await shop.put("tea", 1)
    await shop.reserve("o-1", {"tea": 2})
    await shop.put("tea", 10)
    assert (await shop.reserve("o-1", {"tea": 2})).stage is OrderStatus.REJECTED
    assert await shop.stock("tea") == (10, 0)


async def test_confirming_takes_the_units_out_of_stock_and_asks_for_the_delivery(shop: Shop) -> None:
    await shop.put("tea", 10)
    await shop.reserve("o-1", {"tea": 3})
    state = await shop.confirm("o-1")
    assert (state.stage, state.refusal) == (OrderStatus.CONFIRMED, None)
    assert await shop.stock("tea") == (7, 0)
    assert await shop.events("order:o-1") == CONFIRMED
    assert await shop.sql("SELECT order_id, status FROM deliveries") == [("o-1", "PENDING")]
    await shop.holds_together()


async def test_a_cancelled_hold_frees_its_units_at_once(shop: Shop) -> None:
    await shop.put("tea", 3)
    await shop.reserve("o-1", {"tea": 3})
    assert await shop.cancel("o-1") == OrderState(OrderStatus.CANCELLED)
    assert (await shop.reserve("o-2", {"tea": 3})).stage is OrderStatus.RESERVED
    await shop.holds_together()


async def test_cancelling_a_confirmed_order_brings_the_stock_back_and_ends_the_delivery(shop: Shop) -> None:
    await shop.put("tea", 10)
    await shop.reserve("o-1", {"tea": 3})
    await shop.confirm("o-1")
    assert await shop.cancel("o-1") == OrderState(OrderStatus.CANCELLED)
    assert await shop.stock("tea") == (10, 0)
    assert await shop.events("order:o-1") == [*CONFIRMED, "order.cancelled", "delivery.cancelled"]
    assert await shop.sql("SELECT movement, quantity, order_id FROM stock_ledger ORDER BY entry_id") == [
        ("adjusted", 10, None),
        ("committed", -3, "o-1"),
        ("returned", 3, "o-1"),
    ]
    await shop.holds_together()


async def test_an_order_that_was_picked_up_cannot_be_cancelled(shop: Shop) -> None:
    await shop.put("tea", 10)
    await shop.reserve("o-1", {"tea": 3})
    await shop.confirm("o-1")
    await shop.sql("UPDATE deliveries SET status = 'PICKED_UP'")
    before = await shop.contents()
    state = await shop.cancel("o-1")
    assert (state.stage, state.refusal) == (OrderStatus.CONFIRMED, Refusal.ALREADY_PICKED_UP)
    assert await shop.contents() == before


DECIDED = {"confirm": "CONFIRMED", "cancel": "CANCELLED", "expire": "EXPIRED", "reject": "REJECTED"}
CHANGES_NOTHING = {
    past: [command for command in ("confirm", "cancel", "expire", "extend") if (past, command) != ("confirm", "cancel")]
    for past in DECIDED
}


@pytest.mark.parametrize("past", DECIDED)
async def test_what_is_decided_is_not_decided_again(shop: Shop, past: str) -> None:
    await shop.put("tea", 3)
    await shop.reserve("o-1", {"tea": 9 if past == "reject" else 2})
    if past == "expire":
        await shop.overdue("o-1")
    if past != "reject":
        await shop.do(past, "o-1")
    before = await shop.contents()
    for command in CHANGES_NOTHING[past]:
        assert (await shop.do(command, "o-1")).stage == DECIDED[past]
        assert await shop.contents() == before


async def test_a_hold_before_its_deadline_answers_how_long_it_has_left(shop: Shop) -> None:
    await shop.put("tea", 3)
    await shop.reserve("o-1", {"tea": 1}, hold_seconds=600)
    before = await shop.contents()
    state = await shop.expire("o-1")
    assert state.stage is OrderStatus.RESERVED
    assert state.seconds_left is not None
    assert 0 < state.seconds_left <= 600
    assert await shop.contents() == before


async def test_an_overdue_hold_expires_and_frees_its_units(shop: Shop) -> None:
    await shop.put("tea", 3)
    await shop.reserve("o-1", {"tea": 2})
    await shop.overdue("o-1")
    assert await shop.expire("o-1") == OrderState(OrderStatus.EXPIRED)
    assert await shop.stock("tea") == (3, 0)
    assert await shop.events("order:o-1") == ["order.reserved", "order.expired"]
    await shop.holds_together()


@pytest.mark.parametrize("outside", [False, True])
async def test_an_orders_workflow_is_told_only_of_an_expiry_that_it_did_not_do(shop: Shop, outside: bool) -> None:
    await shop.put("tea", 3)
    await shop.reserve("o-1", {"tea": 2})
    await shop.overdue("o-1")
    await shop.expire("o-1", outside=outside)
    assert await shop.value("SELECT count(*) FROM outbox_messages") == int(outside)


@pytest.mark.parametrize("command", ["confirm", "cancel", "extend"])
async def test_a_command_after_the_deadline_finds_the_hold_expired(shop: Shop, command: str) -> None:
    await shop.put("tea", 3)
    await shop.reserve("o-1", {"tea": 2})
    await shop.overdue("o-1")
    assert await shop.do(command, "o-1") == OrderState(OrderStatus.EXPIRED, refusal=Refusal.HOLD_EXPIRED)
    assert await shop.stock("tea") == (3, 0)
    assert await shop.events("order:o-1") == ["order.reserved", "order.expired"]
    assert await shop.value("SELECT count(*) FROM deliveries") == 0
    await shop.holds_together()


@pytest.mark.parametrize(("hold_seconds", "moves"), [(1, False), (299, False), (3600, True), (86_400, True)])
async def test_an_extension_never_makes_a_hold_end_earlier(shop: Shop, hold_seconds: int, moves: bool) -> None:
    await shop.put("tea", 3)
    await shop.reserve("o-1", {"tea": 2}, hold_seconds=300)
    before = await shop.value("SELECT expires_at FROM reservations")
    state = await shop.extend("o-1", hold_seconds)
    after = await shop.value("SELECT expires_at FROM reservations")
    assert (after > before) is moves
    assert after >= before
    assert state.stage is OrderStatus.RESERVED
    assert state.seconds_left is not None
    assert state.seconds_left <= max(hold_seconds, 300)
    assert await shop.events("order:o-1") == ["order.reserved"]


async def test_an_extended_hold_outlives_its_first_deadline(shop: Shop) -> None:
    await shop.put("tea", 3)
    await shop.reserve("o-1", {"tea": 2}, hold_seconds=1)
    await shop.extend("o-1", 3600)
    assert (await shop.expire("o-1")).stage is OrderStatus.RESERVED


@pytest.mark.parametrize("command", ["confirm", "cancel", "extend", "expire"])
async def test_an_order_that_does_not_exist_is_missing(shop: Shop, command: str) -> None:
    with pytest.raises(OrderMissing):
        await shop.do(command, "o-1")


async def test_a_transaction_that_fails_leaves_nothing_of_the_order(shop: Shop) -> None:
    await shop.put("tea", 3)
    before = await shop.contents()

    async def reserve_and_fail(connection: object) -> None:
        await orders.reserve(connection, new_order("o-1", {"tea": 2}))  # type: ignore[arg-type]
        raise RuntimeError("the power failed")

    with pytest.raises(RuntimeError, match="the power failed"):
        await shop.database.transact(reserve_and_fail)
    assert await shop.contents() == before


# --- on counters that drifted

DRIFTS = [
    "reserved = 0",
    "reserved = stock",
    "stock = 0, reserved = 0",
    "stock = 1, reserved = 1",
    "stock = stock + 5",
    "ledger_stock = 0",
]
STORIES = [("confirm",), ("cancel",), ("expire",), ("extend", "confirm"), ("confirm", "cancel")]


@pytest.mark.parametrize("story", STORIES, ids=" then ".join)
async def test_nothing_fails_on_a_product_whose_counters_drifted(shop: Shop, story: tuple[str, ...]) -> None:
    for number, drifted in enumerate(DRIFTS):
        sku, order_id = f"tea-{number}", f"o-{number}"
        await shop.put(sku, 10)
        await shop.reserve(order_id, {sku: 3})
        await shop.reserve(f"other-{number}", {sku: 2})
        await shop.sql(f"UPDATE products SET {drifted} WHERE sku = :sku", sku=sku)
        for command in story:
            if command == "expire":
                await shop.overdue(order_id)
            assert (await shop.do(command, order_id)).refusal is None, drifted
        assert await shop.status(order_id) == DECIDED[story[-1]]
        stock, reserved = await shop.stock(sku)
        assert 0 <= reserved <= stock
    await shop.orders_and_reservations_agree()
    await shop.counts_are_right()
