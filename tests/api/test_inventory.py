"""Products, stuck holds, drift and reconciliation over HTTP, staged as an operator would by hand."""

from __future__ import annotations

from typing import Any

from db.order import reserve
from domain.order import Line, NewOrder, Place
from tests.houses import House
from tests.receivers import Receiver
from tests.waiting import eventually


async def test_a_product_is_made_then_replaced_and_each_adjustment_is_audited(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url)
    path = "/api/admin/products/tea"
    made = await house.call("PUT", path, {"name": "Tea", "stock": 5, "reason": "first delivery"})
    assert (made.status_code, made.json()) == (
        201,
        {"sku": "tea", "name": "Tea", "stock": 5, "reservedStock": 0, "available": 5},
    )
    replaced = await house.call("PUT", path, {"name": "Tea", "stock": 8})
    same = await house.call("PUT", path, {"name": "Tea", "stock": 8})
    assert (replaced.status_code, same.status_code) == (200, 200)
    await receiver.got("inventory.adjusted", "inventory.adjusted")
    assert [each.event["subject"] for each in receiver.accepted] == ["tea", "tea"]
    actions = (await house.get("/api/admin/ops/actions"))["items"]
    assert [(each["action"], each["reason"]) for each in actions if each["target"] == "product:tea"] == [
        ("product.put", None),
        ("product.put", "first delivery"),
    ]
    assert actions[0]["before"] == {"name": "Tea", "stock": 5}


async def test_stock_cannot_be_set_under_what_is_reserved(house: House) -> None:
    await house.product("tea", 5)
    await house.reserved("k-1", {"tea": 3})
    answer = await house.call("PUT", "/api/admin/products/tea", {"name": "Tea", "stock": 2})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/stock-below-reserved")
    assert answer.json()["reservedStock"] == 3
    assert await house.stock("tea") == (5, 3)


async def test_products_are_listed_newest_first(quiet_house: House) -> None:
    for sku in ("b", "c", "a"):
        await quiet_house.product(sku, 1)
    first = await quiet_house.get("/api/products?limit=2")
    assert [product["sku"] for product in first["items"]] == ["a", "c"]
    rest = await quiet_house.get(f"/api/products?limit=2&cursor={first['nextCursor']}")
    assert ([product["sku"] for product in rest["items"]], rest["nextCursor"]) == (["b"], None)


async def _overdue(house: House, key: str) -> str:
    """An order whose hold ended an hour ago, as hand-written SQL makes it: its workflow does not know."""
    order_id = await house.reserved(key, {"tea": 1})
    await house.sql(
        "UPDATE reservations SET expires_at = now() - interval '1 hour' WHERE order_id = :order_id", order_id=order_id
    )
    return order_id


async def test_a_stuck_hold_is_listed_with_its_cause_and_the_sweep_ends_it(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url)
    await house.product("tea", 5)
    late, ended = await _overdue(house, "k-late"), await _overdue(house, "k-ended")
    await house.workflow(ended).terminate("staged")

    stuck = {item["orderId"]: item for item in (await house.get("/api/admin/ops/reservations/stuck"))["items"]}
    assert stuck[late]["cause"] == "workflow_running_late"
    assert stuck[ended]["cause"] == "workflow_closed"
    assert stuck[ended]["workflow"]["status"] == "TERMINATED"
    assert stuck[late]["workflow"]["url"].endswith(house.names.order(late))
    assert 3599 < stuck[late]["overdueSeconds"] < 3660
    assert await house.metric("ops_inventory_stuck_reservations") == 2

    answer = await house.call("POST", "/api/admin/ops/reservations/sweep", {"reason": "runbook"})
    assert answer.status_code == 202
    for order_id in (late, ended):
        await house.status_becomes(order_id, "EXPIRED")
        await receiver.got("order.reserved", "order.expired", lane=order_id)
    assert (await house.get("/api/admin/ops/reservations/stuck"))["items"] == []
    assert await house.stock("tea") == (5, 0)

    async def told() -> bool:
        description = await house.workflow(late).describe()
        return description.status is not None and description.status.name == "COMPLETED"

    await eventually(told)
    await house.invariants_hold()


async def test_a_hold_whose_workflow_temporal_does_not_know_is_listed_as_missing_and_swept(house: House) -> None:
    await house.product("tea", 5)
    order = NewOrder("lost", "hash", "c-1", "north", [Line("tea", 2)], Place(1, 2), hold_seconds=60)
    await house.database.transact(lambda connection: reserve(connection, order))
    await house.sql("UPDATE reservations SET expires_at = now() - interval '1 hour'")
    [item] = (await house.get("/api/admin/ops/reservations/stuck"))["items"]
    assert (item["cause"], item["workflow"]["status"]) == ("workflow_missing", "MISSING")
    await house.call("POST", "/api/admin/ops/reservations/sweep")
    await house.status_becomes("lost", "EXPIRED")
    await house.invariants_hold()


async def test_drift_is_shown_with_the_reservations_behind_it_and_reconciled_after_a_dry_run(
    house: House, receiver: Receiver
) -> None:
    for sku in ("high", "low", "edited", "fine"):
        await house.product(sku, 10)
        await house.reserved(f"k-{sku}", {sku: 2})
    await house.webhook("shop", receiver.url)
    await house.sql("UPDATE products SET reserved = 5 WHERE sku = 'high'")
    await house.sql("UPDATE products SET reserved = 0 WHERE sku = 'low'")
    await house.sql("UPDATE products SET stock = 7 WHERE sku = 'edited'")

    drift = await house.get("/api/admin/ops/inventory/drift")
    assert (drift["driftedProducts"], drift["driftQuantity"]) == (2, 5)
    items = {item["sku"]: item for item in drift["items"]}
    assert {sku: item["drift"] for sku, item in items.items()} == {"high": 3, "low": -2, "edited": 0}
    assert (items["edited"]["stock"], items["edited"]["ledgerStock"]) == (7, 10)
    assert items["low"]["expectedReservedStock"] == 2
    assert [each["quantity"] for each in items["high"]["reservations"]] == [2]
    assert await house.metric("ops_inventory_reserved_stock_drift_products") == 2
    assert await house.metric("ops_inventory_reserved_stock_drift_qty_total") == 5
    assert not (await house.get("/api/admin/ops/invariants"))["ok"]

    dry = await _reconciled(house, {"reason": "look first"})
    assert dry["dryRun"]
    assert [(each["sku"], each["applied"]) for each in dry["corrections"]] == [
        ("edited", False),
        ("high", False),
        ("low", False),
    ]
    assert await house.stock("high") == (10, 5)

    only_high = await _reconciled(house, {"dryRun": False, "skus": ["high"], "reason": "the worst first"})
    assert [each["sku"] for each in only_high["corrections"]] == ["high"]
    assert (await house.stock("high"), await house.stock("low")) == ((10, 2), (10, 0))
    rest = await _reconciled(house, {"dryRun": False, "reason": "the rest"})
    handle = house.temporal.get_workflow_handle(rest["workflow"]["id"])
    assert await handle.result() == 2
    assert await handle.query("progress") == {"drifted_products": 2, "after_sku": "low", "done": True}
    await house.invariants_hold()
    assert await house.stock("edited") == (7, 2)
    await receiver.got("inventory.reconciled", "inventory.reconciled", "inventory.reconciled")
    reasons = [each["reason"] for each in (await house.get("/api/admin/ops/actions"))["items"]]
    assert {"the worst first", "the rest", "look first"} <= set(reasons)


async def _reconciled(house: House, body: dict[str, Any]) -> dict[str, Any]:
    """The reconciliation, when it is done."""
    answer = await house.call("POST", "/api/admin/ops/inventory/reconcile", body)
    assert answer.status_code == 202
    path = f"/api/admin/ops/inventory/reconcile/{answer.json()['operationId']}"

    async def done() -> dict[str, Any] | None:
        found: dict[str, Any] = await house.get(path)
        return found if found["status"] == "DONE" else None

    found = await eventually(done)
    assert found is not None
    return found


async def test_a_reconciliation_needs_a_reason(quiet_house: House) -> None:
    answer = await quiet_house.call("POST", "/api/admin/ops/inventory/reconcile", {"dryRun": True})
    assert answer.status_code == 422
    assert (await quiet_house.call("GET", "/api/admin/ops/inventory/reconcile/nope")).status_code == 404


async def test_a_reconciliation_of_products_that_are_not_there_is_422_and_names_them(quiet_house: House) -> None:
    await quiet_house.product("tea", 5)
    body = {"skus": ["tea", "no-tea"], "reason": "drill"}
    answer = await quiet_house.call("POST", "/api/admin/ops/inventory/reconcile", body)
    assert (answer.status_code, answer.json()["type"], answer.json()["skus"]) == (
        422,
        "/problems/unknown-sku",
        ["no-tea"],
    )


async def test_a_reconciliation_tells_how_many_products_it_has_done_of_how_many(quiet_house: House) -> None:
    for sku in ("a", "b", "c", "fine"):
        await quiet_house.product(sku, 5)
    await quiet_house.sql("UPDATE products SET reserved = 1 WHERE sku <> 'fine'")
    await quiet_house.sql(
        "INSERT INTO reconciliations (operation_id, dry_run, skus, actor, reason)"
        " VALUES ('all', true, NULL, 'admin', 'drill'), ('some', false, ARRAY['b', 'fine'], 'admin', 'drill')"
    )
    await quiet_house.sql(
        "INSERT INTO corrections VALUES ('all', 'a', 1, 0, 5, 5, false), ('some', 'fine', 1, 0, 5, 5, true)"
    )
    path = "/api/admin/ops/inventory/reconcile"
    for operation_id, progress in {"all": (1, 3), "some": (1, 2)}.items():
        running = await quiet_house.get(f"{path}/{operation_id}")
        assert (running["done"], running["total"]) == progress
    await quiet_house.sql("UPDATE reconciliations SET status = 'DONE', finished_at = now()")
    over = await quiet_house.get(f"{path}/all")
    assert (over["done"], over["total"]) == (1, 1)


async def test_a_drifted_product_never_blocks_its_orders(house: House) -> None:
    await house.product("tea", 10)
    paid, unwanted, forgotten = [await house.reserved(f"k-{number}", {"tea": 2}) for number in range(3)]
    await house.sql("UPDATE products SET reserved = 1, stock = 1")
    assert (await house.call("POST", f"/api/orders/{paid}/confirm")).status_code == 200
    assert (await house.call("POST", f"/api/orders/{unwanted}/cancel")).status_code == 200
    await house.sql(
        "UPDATE reservations SET expires_at = now() - interval '1 hour' WHERE order_id = :order_id", order_id=forgotten
    )
    await house.call("POST", "/api/admin/ops/reservations/sweep")
    await house.status_becomes(forgotten, "EXPIRED")
