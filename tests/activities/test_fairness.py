"""What one endpoint, one lane or one admin does while a relay is busy."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from sqlalchemy import text

from domain.outbox import shard_of
from tests.houses import House
from tests.receivers import Receiver, verified
from tests.waiting import eventually


async def adjust(house: House, skus: int, times: int = 1) -> None:
    """So many events in each of so many lanes."""
    for stock in range(1, times + 1):
        puts = (
            house.call("PUT", f"/api/admin/products/sku-{sku}", {"name": "x", "stock": stock}) for sku in range(skus)
        )
        await asyncio.gather(*puts)


async def count_becomes(receiver: Receiver, count: int, timeout_seconds: float = 30.0) -> None:
    async def arrived() -> bool:
        return len({each.headers["webhook-id"] for each in receiver.accepted}) >= count

    await eventually(arrived, timeout_seconds)


async def test_an_outage_in_mid_stream_is_the_endpoints_fault_and_fails_nobody(
    house: House, receiver: Receiver
) -> None:
    calls = itertools.count()
    down = {"from": 30}
    receiver.answer = lambda event: 503 if next(calls) >= down["from"] else 200
    await house.webhook("shop", receiver.url)
    await adjust(house, 150)

    async def open_() -> bool:
        return await house.metric('ops_outbox_endpoint_open{endpoint="shop"}') == 1

    await eventually(open_)
    [[failing]] = await house.sql("SELECT count(*) FROM outbox_failures")
    assert failing < 5  # those in flight when nothing had yet shown that nothing passes
    down["from"] = 10**9
    await count_becomes(receiver, 150)
    assert await house.metric("ops_outbox_failed_events") == 0


async def test_many_lanes_that_fail_by_themselves_hold_the_others_up_for_no_long(
    house: House, receiver: Receiver
) -> None:
    receiver.answer_seconds = 0.05
    receiver.answer = lambda event: 500 if event["subject"].startswith("poison") else 200
    await house.webhook("shop", receiver.url, enabled=False)
    await asyncio.gather(*(house.product(f"poison-{number}", 1) for number in range(48)))
    await adjust(house, 72)
    await house.call("POST", "/api/admin/webhooks/shop/enable")  # the oldest come first, and all of them fail
    await count_becomes(receiver, 72)


async def test_a_long_lane_leaves_room_for_the_others(house: House, receiver: Receiver) -> None:
    await house.product("long", 1)
    for stock in range(2, 200):
        await house.call("PUT", "/api/admin/products/long", {"name": "x", "stock": stock})
    await house.webhook("shop", receiver.url, enabled=False)
    for stock in range(200, 450):
        await house.call("PUT", "/api/admin/products/long", {"name": "x", "stock": stock})
    lane = "sku:long"
    [[shard]] = await house.sql("SELECT DISTINCT shard FROM outbox_events WHERE lane = :lane", lane=lane)
    others = [sku for sku in range(40) if shard_of(f"sku:other-{sku}") == shard]
    for sku in others:
        await house.product(f"other-{sku}", 1)
    receiver.answer_seconds = 0.02
    await house.call("POST", "/api/admin/webhooks/shop/enable")

    async def others_arrived() -> bool:
        return {f"other-{sku}" for sku in others} <= {each.event["subject"] for each in receiver.accepted}

    await eventually(others_arrived)
    assert sum(each.event["subject"] == "long" for each in receiver.accepted) < 60


async def test_a_webhook_that_is_disabled_or_rotated_under_load_is_obeyed_at_once(
    house: House, receiver: Receiver
) -> None:
    receiver.answer_seconds = 0.2
    await house.webhook("shop", receiver.url, enabled=False)
    await adjust(house, 40, times=12)
    await house.call("POST", "/api/admin/webhooks/shop/enable")
    await count_becomes(receiver, 40)
    rotated = (await house.call("POST", "/api/admin/webhooks/shop/rotate-secret")).json()["secret"]
    seen = len(receiver.requests)
    await count_becomes(receiver, seen + 80)
    verified(receiver.requests[-1], rotated)
    await house.call("PUT", "/api/admin/webhooks/shop", {"url": receiver.url, "enabled": False})
    at_once = len(receiver.requests)

    async def quiet() -> bool:
        before = len(receiver.requests)
        [[claimed]] = await house.sql("SELECT count(*) FROM outbox_claims WHERE positions <> '{}'")
        return claimed == 0 and before == len(receiver.requests)

    await eventually(quiet)
    assert len(receiver.requests) - at_once < 100  # those whose request was under way
    assert (await house.call("DELETE", "/api/admin/webhooks/shop")).status_code == 204
    assert await house.metric("ops_outbox_backlog_size") == 0


async def test_changing_webhooks_waits_for_no_reader(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url)

    async def while_somebody_reads(connection: Any) -> None:
        await connection.execute(text("SELECT * FROM outbox_endpoints"))  # as pg_dump does, for its whole run
        changed = await house.call("PUT", "/api/admin/webhooks/shop", {"url": receiver.url, "enabled": False})
        assert changed.status_code == 200
        assert (await house.call("DELETE", "/api/admin/webhooks/shop")).status_code == 204

    await house.database.transact(while_somebody_reads)


async def test_a_failing_message_whose_workflow_was_lost_gets_a_new_one(house: House, receiver: Receiver) -> None:
    receiver.answer = lambda event: 400
    await house.webhook("shop", receiver.url)
    await house.product("tea", 1)

    async def retried() -> str | None:
        items = (await house.get("/api/admin/ops/outbox/failures?status=RETRYING"))["items"]
        return items[0]["workflow"]["id"] if items and items[0]["workflow"]["status"] == "RUNNING" else None

    workflow_id = await eventually(retried)
    assert workflow_id is not None
    await house.temporal.get_workflow_handle(workflow_id).terminate("lost")
    receiver.answer = lambda event: 200
    await house.sql("""
        UPDATE outbox_failures SET workflow_started_at = now() - interval '1 hour',
            next_attempt_at = now() - interval '1 hour'""")
    await count_becomes(receiver, 1)
