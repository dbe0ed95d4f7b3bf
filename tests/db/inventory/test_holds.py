"""Holds that outlived their deadline: found with their grace, the oldest first for the sweep."""

from __future__ import annotations

from db.inventory import holds
from tests.db.shops import Shop


async def overdue_by(shop: Shop, order_id: str, seconds: int) -> None:
    await shop.sql(
        "UPDATE reservations SET expires_at = now() - make_interval(secs => :seconds) WHERE order_id = :id",
        seconds=float(seconds),
        id=order_id,
    )


async def three_overdue_holds(shop: Shop) -> None:
    """`o-2` is overdue the longest, `o-3` the shortest; `o-4` and `o-5` are not."""
    await shop.put("tea", 100)
    await shop.put("cup", 100)
    for number in range(1, 6):
        await shop.reserve(f"o-{number}", {"tea": number, "cup": 1})
    for order_id, seconds in (("o-1", 200), ("o-2", 300), ("o-3", 100), ("o-5", 400)):
        await overdue_by(shop, order_id, seconds)
    await shop.expire("o-5")


async def test_the_sweep_takes_the_oldest_overdue_orders_first(shop: Shop) -> None:
    await three_overdue_holds(shop)
    async with shop.database.read() as connection:
        assert await holds.overdue_orders(connection, 5, 10) == ["o-2", "o-1", "o-3"]
        assert await holds.overdue_orders(connection, 150, 10) == ["o-2", "o-1"]
        assert await holds.overdue_orders(connection, 5, 1) == ["o-2"]


async def test_stuck_holds_are_listed_by_deadline_page_by_page(shop: Shop) -> None:
    await three_overdue_holds(shop)
    pages = []
    after = None
    async with shop.database.read() as connection:
        while page := await holds.stuck_reservations(connection, 5, after, 2):
            pages.append([(each.order_id, each.sku) for each in page])
            after = page[-1].expires_at, page[-1].reservation_id
    assert [len(page) for page in pages] == [2, 2, 2]
    listed = [pair for page in pages for pair in page]
    assert [order_id for order_id, _ in listed] == ["o-3", "o-3", "o-1", "o-1", "o-2", "o-2"]
    assert len(set(listed)) == 6


async def test_a_stuck_hold_says_what_it_holds_and_for_how_long_it_is_overdue(shop: Shop) -> None:
    await shop.put("tea", 100)
    await shop.reserve("o-1", {"tea": 4})
    await overdue_by(shop, "o-1", 3600)
    async with shop.database.read() as connection:
        (stuck,) = await holds.stuck_reservations(connection, 3000, None, 10)
        assert await holds.stuck_reservations(connection, 7200, None, 10) == []
    assert (stuck.order_id, stuck.sku, stuck.quantity) == ("o-1", "tea", 4)
    assert 3600 <= stuck.overdue_seconds < 3660


async def test_an_order_holds_nothing_any_more_once_it_is_decided(shop: Shop) -> None:
    await shop.put("tea", 100)
    await shop.reserve("o-1", {"tea": 4})
    async with shop.database.read() as connection:
        assert 890 < await holds.seconds_left(connection, "o-1") <= 900
    await shop.cancel("o-1")
    async with shop.database.read() as connection:
        assert await holds.seconds_left(connection, "o-1") == 0
