"""Snapshots: everything that explains an incident, of one moment, kept as it was."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from temporalio.client import Client

from local.ports import free_port
from tests.houses import TOKENS, House, open_house
from tests.receivers import Receiver
from tests.waiting import eventually

SNAPSHOTS = "/api/admin/ops/snapshots"


async def taken(house: House, **body: Any) -> dict[str, Any]:
    """A new snapshot, when it is done."""
    answer = await house.call("POST", SNAPSHOTS, body or None)
    assert answer.status_code == 202, answer.text
    path = f"{SNAPSHOTS}/{answer.json()['snapshotId']}"

    async def done() -> dict[str, Any] | None:
        found: dict[str, Any] = await house.get(path)
        return found if found["status"] == "DONE" else None

    found = await eventually(done, 20)
    assert found is not None
    return found


async def failed_message(house: House, receiver: Receiver) -> str:
    """A message that waits for an admin; its receiver answered in words of its own."""
    receiver.answer = lambda event: 400 if event["subject"] == "bad" else 200
    secret = await house.webhook("shop", receiver.url)
    await house.product("bad", 1)

    async def failing() -> list[Any]:
        return await house.sql("SELECT position FROM outbox_failures WHERE status = 'RETRYING'")

    await eventually(failing)
    await house.sql(
        "UPDATE outbox_failures SET status = 'FAILED', last_error = 'HTTP 400: what do I care for c-secret'"
    )
    return secret


async def test_a_snapshot_holds_everything_of_its_moment_and_never_changes(house: House, receiver: Receiver) -> None:
    secret = await failed_message(house, receiver)
    await house.product("tea", 5)
    order_id = await house.reserved(
        "k-1",
        {"tea": 1},
        customerId="c-secret",
        email="somebody@secret.example",
        dropoff={"lat": 52.5, "lng": 13.4, "address": "Secret Street 1"},
    )
    await house.sql("UPDATE products SET reserved = 3 WHERE sku = 'tea'")
    snapshot = await taken(house, reason="drift on tea")

    assert snapshot["reason"] == "drift on tea"
    assert snapshot["createdAt"] < snapshot["capturedAt"]
    scraped = (await house.call("GET", "/api/admin/ops/metrics")).text.splitlines()
    names = {line.rsplit(" ", 1)[0] for line in scraped if not line.startswith("#")}
    assert set(snapshot["metrics"]) == names - {"process_uptime_seconds"}
    assert snapshot["metrics"]["ops_inventory_reserved_stock_drift_products"] == 1
    assert snapshot["metrics"]['ops_orders{status="RESERVED"}'] == 1
    [failure] = snapshot["failures"]
    [listed] = (await house.get("/api/admin/ops/outbox/failures"))["items"]
    assert {**failure, "lastError": listed["lastError"], "workflow": listed["workflow"]} == listed
    assert failure["lastError"] == "HTTP 400"
    assert snapshot["drift"] == await house.get("/api/admin/ops/inventory/drift")
    assert snapshot["drift"]["items"][0]["reservations"][0]["orderId"] == order_id
    assert snapshot["invariants"] == await house.get("/api/admin/ops/invariants")
    assert not snapshot["invariants"]["ok"]
    assert snapshot["health"].keys() == (await house.get("/api/admin/ops/health")).keys()
    assert snapshot["health"]["workers"]["alive"] == 1
    written = json.dumps(snapshot)
    for private in (secret, receiver.url, *TOKENS.values(), "c-secret", "secret.example", "Secret Street"):
        assert private not in written

    await house.sql("UPDATE products SET reserved = 1 WHERE sku = 'tea'")
    await house.call("POST", f"/api/orders/{order_id}/confirm")
    assert await house.get(f"{SNAPSHOTS}/{snapshot['snapshotId']}") == snapshot


async def test_a_snapshot_is_saved_as_one_file(house: House) -> None:
    snapshot = await taken(house)
    answer = await house.call("GET", f"{SNAPSHOTS}/{snapshot['snapshotId']}")
    assert answer.headers["content-type"] == "application/json"
    name = f"waybill-snapshot-{snapshot['snapshotId']}.json"
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert snapshot["workflow"]["url"].endswith(house.names.snapshot(snapshot["snapshotId"]))


async def test_all_of_a_snapshot_is_of_one_moment_while_orders_come_and_go(house: House) -> None:
    await house.product("tea", 100)
    busy = True

    async def come_and_go(writer: int) -> None:
        number = 0
        while busy:
            number += 1
            order_id = await house.reserved(f"k-{writer}-{number}", {"tea": 1})
            await house.call("POST", f"/api/orders/{order_id}/cancel")

    writers = [asyncio.create_task(come_and_go(writer)) for writer in range(3)]
    snapshots = [await taken(house) for _ in range(3)]
    busy = False
    await asyncio.gather(*writers)
    for snapshot in snapshots:
        metrics = snapshot["metrics"]
        assert snapshot["drift"]["items"] == []
        assert snapshot["invariants"]["ok"], snapshot["invariants"]
        assert metrics['ops_orders{status="RESERVED"}'] == metrics['ops_inventory_reservations{status="ACTIVE"}']
    totals = [snapshot["metrics"]['ops_orders{status="CANCELLED"}'] for snapshot in snapshots]
    assert totals == sorted(totals)
    assert totals[-1] > 0


async def test_snapshots_are_listed_newest_first_page_by_page_and_audited(house: House) -> None:
    ids = [(await taken(house, reason=f"reason {number}"))["snapshotId"] for number in range(3)]
    page = await house.get(f"{SNAPSHOTS}?limit=2")
    rest = await house.get(f"{SNAPSHOTS}?limit=2&cursor={page['nextCursor']}")
    items = page["items"] + rest["items"]
    assert [item["snapshotId"] for item in items] == ids[::-1]
    assert items[0].keys() == {"snapshotId", "createdAt", "reason", "status"}
    assert (items[0]["reason"], items[0]["status"], rest["nextCursor"]) == ("reason 2", "DONE", None)
    actions = (await house.get("/api/admin/ops/actions"))["items"]
    assert [(each["action"], each["target"], each["reason"]) for each in actions] == [
        ("snapshot.capture", f"snapshot:{snapshot_id}", f"reason {2 - number}")
        for number, snapshot_id in enumerate(ids[::-1])
    ]


async def test_one_that_does_not_exist_is_404_and_others_than_admins_are_kept_out(
    database_url: str, client: Client, installation: str
) -> None:
    async with open_house(database_url, client, installation, worker=False) as house:
        assert (await house.call("GET", f"{SNAPSHOTS}/nope")).status_code == 404
        assert (await house.call("GET", f"{SNAPSHOTS}?cursor=nope")).status_code == 422
        assert (await house.call("POST", SNAPSHOTS, {"reasons": "?"})).status_code == 422
        for method, path in (("POST", SNAPSHOTS), ("GET", SNAPSHOTS), ("GET", f"{SNAPSHOTS}/nope")):
            for role in ("client", "courier"):
                assert (await house.call(method, path, role=role)).status_code == 403
            assert (await house.http.request(method, path)).status_code == 401


async def test_with_nobody_home_nothing_is_begun(database_url: str, client: Client, installation: str) -> None:
    async with open_house(database_url, client, installation, worker=False) as house:
        answer = await house.call("POST", SNAPSHOTS)
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/no-worker")
        assert (await house.get(SNAPSHOTS))["items"] == []
        assert (await house.get("/api/admin/ops/actions"))["items"] == []


async def test_one_that_temporal_does_not_start_is_marked_failed(database_url: str, installation: str) -> None:
    nowhere = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with open_house(database_url, nowhere, installation, worker=False) as house:
        await house.sql("INSERT INTO workers (worker_id, heartbeat_at) VALUES ('w-1', now() + interval '1 hour')")
        answer = await house.call("POST", SNAPSHOTS, {"reason": "outage"})
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/temporal-unavailable")
        assert "retry-after" in answer.headers
        [item] = (await house.get(SNAPSHOTS))["items"]
        assert item["status"] == "FAILED"
        shown = await house.call("GET", f"{SNAPSHOTS}/{item['snapshotId']}")
        assert (shown.status_code, "content-disposition" in shown.headers) == (200, False)
