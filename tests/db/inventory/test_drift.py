"""Where counters and rows disagree: seen exactly, and set right under the lock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Row

from db import order as orders
from db.inventory import drift
from domain.ids import new_id
from tests.db.shops import Shop

# What an operator's hand did to a product with 10 in stock, 3 of them held: and what the drift view then says
# (stock, reserved, what reserved should be, what the ledger says of stock), and the product after reconciling.
EDITS = {
    "reserved too high": ("reserved = 8", (10, 8, 3, 10), (10, 3)),
    "reserved too low": ("reserved = 1", (10, 1, 3, 10), (10, 3)),
    "reserved forgotten": ("reserved = 0", (10, 0, 3, 10), (10, 3)),
    "stock edited down": ("stock = 6", (6, 3, 3, 10), (6, 3)),
    "stock edited up": ("stock = 60", (60, 3, 3, 10), (60, 3)),
    "both edited": ("stock = 6, reserved = 6", (6, 6, 3, 10), (6, 3)),
    "stock edited under what is held": ("stock = 1, reserved = 1", (1, 1, 3, 10), (3, 3)),
    "everything gone": ("stock = 0, reserved = 0", (0, 0, 3, 10), (3, 3)),
}


async def three_held_of_ten(shop: Shop) -> None:
    await shop.put("cup", 5)
    await shop.put("tea", 10)
    await shop.reserve("o-1", {"tea": 1, "cup": 2})
    await shop.reserve("o-2", {"tea": 2})


async def reconcile(
    shop: Shop, *, dry_run: bool = False, skus: Sequence[str] | None = None, operation_id: str | None = None
) -> tuple[Row[Any], Sequence[Row[Any]]]:
    """Reconcile all drifted products; answer the operation and its corrections."""
    operation = operation_id or new_id()
    if operation_id is None:
        await shop.database.transact(
            lambda c: drift.begin_reconciliation(
                c, operation, dry_run=dry_run, skus=skus, actor="admin", reason="drill"
            )
        )
    async with shop.database.read() as connection:
        found = await drift.get_reconciliation(connection, operation)
        assert found is not None
        drifted = [row.sku for row in await drift.drifted_products(connection)]
    for sku in drifted:
        await shop.database.transact(partial(drift.reconcile_product, reconciliation=found[0], sku=sku))
    await shop.database.transact(lambda c: drift.finish_reconciliation(c, operation))
    async with shop.database.read() as connection:
        found = await drift.get_reconciliation(connection, operation)
    assert found is not None
    return found


async def test_healthy_products_do_not_drift(shop: Shop) -> None:
    await three_held_of_ten(shop)
    assert await shop.drift() == {}
    async with shop.database.read() as connection:
        assert tuple(await drift.drift_totals(connection)) == (0, 0)


@pytest.mark.parametrize("edit", EDITS)
async def test_an_edit_by_hand_shows_as_drift_and_is_set_right(shop: Shop, edit: str) -> None:
    change, seen, mended = EDITS[edit]
    await three_held_of_ten(shop)
    await shop.sql(f"UPDATE products SET {change} WHERE sku = 'tea'")
    assert await shop.drift() == {"tea": seen}
    async with shop.database.read() as connection:
        totals = await drift.drift_totals(connection)
    off = abs(seen[1] - seen[2])
    assert tuple(totals) == (int(off > 0), off)

    operation, corrections = await reconcile(shop)
    assert (operation.status, len(corrections)) == ("DONE", 1)
    assert await shop.stock("tea") == mended
    await shop.holds_together()
    assert await shop.events("sku:tea") == ["inventory.adjusted", "inventory.reconciled"]
    reconciled = await shop.sql("SELECT quantity FROM stock_ledger WHERE movement = 'reconciled'")
    assert reconciled == ([(mended[0] - 10,)] if mended[0] != 10 else [])


async def test_the_holds_behind_a_drifted_product_are_named(shop: Shop) -> None:
    await three_held_of_ten(shop)
    await shop.cancel("o-1")
    async with shop.database.read() as connection:
        held = await drift.active_reservations(connection, ["tea", "cup"])
    assert [(row.order_id, row.sku, row.quantity) for row in held] == [("o-2", "tea", 2)]


async def test_a_dry_run_tells_what_it_would_do_and_does_nothing(shop: Shop) -> None:
    await three_held_of_ten(shop)
    await shop.sql("UPDATE products SET stock = 6, reserved = 0 WHERE sku = 'tea'")
    before = await shop.contents()
    operation, corrections = await reconcile(shop, dry_run=True)
    assert (operation.status, operation.dry_run, operation.reason) == ("DONE", True, "drill")
    assert [
        (row.sku, row.reserved_before, row.reserved_after, row.ledger_before, row.ledger_after, row.applied)
        for row in corrections
    ] == [("tea", 0, 3, 10, 6, False)]
    after = await shop.contents()
    told = {"reconciliations", "corrections", "admin_actions"}
    assert {table for table in after if after[table] != before[table]} == told


async def test_a_correction_is_audited_with_what_was_before_and_after(shop: Shop) -> None:
    await three_held_of_ten(shop)
    await shop.sql("UPDATE products SET stock = 6, reserved = 0 WHERE sku = 'tea'")
    operation, _ = await reconcile(shop)
    actions = await shop.sql("SELECT actor, action, target, reason FROM admin_actions ORDER BY action_id")
    assert actions[-2:] == [
        ("admin", "inventory.reconcile", f"reconciliation:{operation.operation_id}", "drill"),
        ("admin", "inventory.correct", "product:tea", "drill"),
    ]
    data = await shop.value("SELECT data FROM outbox_events WHERE event_type = 'waybill.inventory.reconciled'")
    assert (data["sku"], data["operationId"], data["reason"]) == ("tea", operation.operation_id, "drill")
    assert await shop.value("SELECT before FROM admin_actions WHERE action = 'inventory.correct'") == data["before"]
    assert await shop.value("SELECT after FROM admin_actions WHERE action = 'inventory.correct'") == data["after"]


async def test_reconciling_again_changes_nothing_more(shop: Shop) -> None:
    await three_held_of_ten(shop)
    await shop.sql("UPDATE products SET reserved = 0 WHERE sku = 'tea'")
    operation, _ = await reconcile(shop)
    before = await shop.contents()
    await reconcile(shop, operation_id=operation.operation_id)
    async with shop.database.read() as connection:
        found = await drift.get_reconciliation(connection, operation.operation_id)
    assert found is not None
    for sku in ("tea", "cup", "no such product"):
        await shop.database.transact(partial(drift.reconcile_product, reconciliation=found[0], sku=sku))
    assert await shop.contents() == before


async def test_a_reconciliation_that_nobody_asked_for_does_not_exist(shop: Shop) -> None:
    async with shop.database.read() as connection:
        assert await drift.get_reconciliation(connection, new_id()) is None


async def test_a_release_on_a_drifted_product_leaves_the_rest_of_the_drift_to_see(shop: Shop) -> None:
    await three_held_of_ten(shop)
    await shop.sql("UPDATE products SET reserved = 1 WHERE sku = 'tea'")
    await shop.database.transact(lambda connection: orders.cancel(connection, "o-2"))
    assert await shop.drift() == {"tea": (10, 0, 1, 10)}
    await reconcile(shop)
    await shop.holds_together()


@pytest.mark.parametrize("seed", [1, 2])
async def test_drift_ends_at_nothing_while_writers_race_the_reconciliation(shop: Shop, seed: int) -> None:
    chance = random.Random(seed)
    for sku in ("tea", "cup"):
        await shop.put(sku, 1000)
    for number in range(10):
        await shop.reserve(f"early-{number}", {"tea": 1, "cup": 2})
    # Too low for one, too high for the other, far enough from the limits that no release is clamped.
    await shop.sql("UPDATE products SET reserved = reserved + 300 WHERE sku = 'tea'")
    await shop.sql("UPDATE products SET stock = stock - 100, reserved = reserved - 5 WHERE sku = 'cup'")

    async def trade(number: int) -> None:
        order_id, end = f"o-{number}", chance.choice(["confirm", "cancel", "expire"])
        await shop.reserve(order_id, {"tea": 1, "cup": 1})
        if end == "expire":
            await shop.overdue(order_id)
        await shop.do(end, order_id)

    await asyncio.gather(*(trade(number) for number in range(40)), *(reconcile(shop) for _ in range(3)))
    await shop.holds_together()
    assert await shop.value("SELECT count(*) FROM outbox_events WHERE event_type = 'waybill.inventory.reconciled'") == 2
    assert await shop.value("SELECT reserved FROM products WHERE sku = 'cup'") == 20
