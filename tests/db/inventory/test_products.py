"""What admins set: every change of stock is a recorded adjustment."""

from __future__ import annotations

import pytest

from db.inventory import products
from db.inventory.products import StockBelowReserved
from tests.db.shops import Shop


async def adjustments(shop: Shop) -> list[tuple[object, ...]]:
    rows = await shop.sql(
        "SELECT sku, movement, quantity, before, after, actor, reason FROM stock_ledger ORDER BY entry_id"
    )
    return [tuple(row) for row in rows]


async def test_a_new_product_is_booked_told_and_audited(shop: Shop) -> None:
    assert await shop.put("tea", 10) is True
    assert await shop.stock("tea") == (10, 0)
    assert await adjustments(shop) == [("tea", "adjusted", 10, 0, 10, "admin", "count")]
    assert await shop.sql("SELECT event_type, subject, lane, data FROM outbox_events") == [
        (
            "waybill.inventory.adjusted",
            "tea",
            "sku:tea",
            {"sku": "tea", "name": "Tea", "stockBefore": 0, "stock": 10, "reason": "count"},
        )
    ]
    assert await shop.sql("SELECT actor, action, target, reason, before, after FROM admin_actions") == [
        ("admin", "product.put", "product:tea", "count", None, {"name": "Tea", "stock": 10})
    ]
    await shop.holds_together()


@pytest.mark.parametrize("stock", [0, 4, 9, 11, 2_000_000_000])
async def test_another_stock_is_booked_as_the_difference(shop: Shop, stock: int) -> None:
    await shop.put("tea", 10)
    assert await shop.put("tea", stock) is False
    assert (await adjustments(shop))[1:] == [("tea", "adjusted", stock - 10, 10, stock, "admin", "count")]
    assert await shop.events("sku:tea") == ["inventory.adjusted"] * 2
    await shop.holds_together()


async def test_the_same_product_again_moves_nothing(shop: Shop) -> None:
    await shop.put("tea", 10)
    unchanged = "SELECT * FROM stock_ledger", "SELECT * FROM outbox_events"
    before = [await shop.sql(statement) for statement in unchanged]
    assert await shop.put("tea", 10) is False
    assert [await shop.sql(statement) for statement in unchanged] == before
    assert await shop.stock("tea") == (10, 0)


async def test_a_new_name_alone_moves_no_stock(shop: Shop) -> None:
    await shop.put("tea", 10)
    await shop.put("tea", 10, name="Green Tea")
    assert len(await adjustments(shop)) == 1
    assert await shop.events("sku:tea") == ["inventory.adjusted"]
    assert await shop.value("SELECT count(*) FROM admin_actions") == 2


async def test_an_empty_new_product_moves_no_stock(shop: Shop) -> None:
    await shop.put("tea", 0)
    assert (await adjustments(shop), await shop.events("sku:tea")) == ([], [])
    await shop.holds_together()


@pytest.mark.parametrize(("stock", "refused"), [(0, True), (2, True), (3, False), (4, False)])
async def test_stock_cannot_be_set_under_what_is_reserved(shop: Shop, stock: int, refused: bool) -> None:
    await shop.put("tea", 10)
    await shop.reserve("o-1", {"tea": 3})
    before = await shop.contents()
    if refused:
        with pytest.raises(StockBelowReserved) as caught:
            await shop.put("tea", stock)
        assert (caught.value.sku, caught.value.reserved) == ("tea", 3)
        assert await shop.contents() == before
    else:
        await shop.put("tea", stock)
        assert await shop.stock("tea") == (stock, 3)
    await shop.holds_together()


async def test_setting_the_stock_books_an_edit_by_hand_with_it(shop: Shop) -> None:
    await shop.put("tea", 10)
    await shop.sql("UPDATE products SET stock = 7")
    await shop.put("tea", 8)
    assert (await adjustments(shop))[1:] == [("tea", "adjusted", -2, 10, 8, "admin", "count")]
    await shop.holds_together()


async def test_products_are_listed_newest_first_page_by_page(shop: Shop) -> None:
    for number in range(5):
        await shop.put(f"sku-{number}", number)
    async with shop.database.read() as connection:
        first = await products.list_products(connection, None, 2)
        second = await products.list_products(connection, (first[-1].created_at, first[-1].sku), 2)
        third = await products.list_products(connection, (second[-1].created_at, second[-1].sku), 2)
        some = await products.get_products(connection, ["sku-1", "sku-9"])
    assert [each.sku for each in (*first, *second, *third)] == ["sku-4", "sku-3", "sku-2", "sku-1", "sku-0"]
    assert {sku: (each.stock, each.reserved) for sku, each in some.items()} == {"sku-1": (1, 0)}
