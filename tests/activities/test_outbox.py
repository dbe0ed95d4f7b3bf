"""The relays on the real stack: lanes in order, the poisoned one aside, the broken endpoint left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from db.outbox import relay
from domain.outbox import SHARDS
from local.ports import free_port
from tests.activities.lanes import (
    STORY,
    PatientReceiver,
    all_is_settled,
    breaker,
    confirm,
    decide,
    failing,
    give_up_trying,
    orders_of_one_shard,
)
from tests.houses import House
from tests.receivers import ABORT, Receiver
from tests.waiting import eventually


def refusing(order_id: str, status: int, *types: str) -> Callable[[dict[str, Any]], int]:
    """Answers one order's events (of these types, or all) with that status."""

    def answer(event: dict[str, Any]) -> int:
        if event["data"].get("orderId") != order_id:
            return 200
        return status if not types or event["type"].removeprefix("waybill.") in types else 200

    return answer


async def test_a_slow_order_keeps_its_own_order_of_events_and_holds_no_other_up(house: House) -> None:
    async with PatientReceiver() as receiver:
        await house.webhook("shop", receiver.url, eventTypes=[f"waybill.{each}" for each in STORY])
        slow, quick = await orders_of_one_shard(house, 2)
        await receiver.got("order.reserved", lane=slow)
        receiver.held[slow] = asyncio.Event()
        await confirm(house, slow)

        async def stuck() -> bool:
            return receiver.arrived.count(slow) == 2

        await eventually(stuck)
        await confirm(house, quick)
        await receiver.got(*STORY, lane=quick)
        assert receiver.arrived.count(slow) == 2, "one at a time in a lane"
        assert receiver.types(slow) == ["order.reserved"]
        receiver.held[slow].set()
        await receiver.got(*STORY, lane=slow)
    await house.invariants_hold()


async def test_many_orders_at_once_arrive_once_each_and_in_order(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url)
    await house.product("tea", 1000)
    order_ids = await asyncio.gather(*(house.reserved(f"k-{number}", {"tea": 1}) for number in range(25)))
    await asyncio.gather(*(confirm(house, order_id) for order_id in order_ids))
    for order_id in order_ids:
        await receiver.got(*STORY, lane=order_id, timeout_seconds=20.0)
    ids = [each.headers["webhook-id"] for each in receiver.requests]
    assert len(ids) == len(set(ids)) == 25 * 3 + 1
    await all_is_settled(house)
    finished = "SELECT count(*) FROM outbox_finished JOIN outbox_endpoints USING (endpoint_id) WHERE name = 'shop'"
    assert await house.sql(finished) == [(len(ids),)]
    told = await house.sql("SELECT count(*) FROM outbox_finished WHERE status = 'DELIVERED'")
    assert await house.metric("ops_outbox_dispatched_total") == told[0][0]


async def test_a_poisoned_message_is_tried_three_times_then_fails_visibly_and_parks_only_its_lane(
    house: House, receiver: Receiver
) -> None:
    await house.webhook("shop", receiver.url)
    poisoned, healthy = await orders_of_one_shard(house, 2)
    receiver.answer = refusing(poisoned, 400, "order.confirmed")
    await confirm(house, poisoned)
    await failing(house, "RETRYING")
    await confirm(house, healthy)
    await receiver.got(*STORY, lane=healthy)

    (item,) = await failing(house, "FAILED")
    assert (item["eventType"], item["aggregateId"], item["sink"]) == ("waybill.order.confirmed", poisoned, "shop")
    assert (item["status"], item["attempts"], item["errorClass"]) == ("FAILED", 3, "event")
    assert item["lastError"].startswith("HTTP 400")
    refused = [each for each in receiver.requests if each.status == 400]
    assert len(refused) == 3
    assert {each.headers["webhook-id"] for each in refused} == {item["eventId"]}
    assert await house.metric("ops_outbox_failed_events") == 1
    assert await house.metric("ops_outbox_failed_transitions_total") == 1
    assert await house.metric('ops_outbox_dispatch_errors_total{error_class="event"}') == 3
    assert receiver.types(poisoned) == ["order.reserved"]

    async def workflow_failed() -> bool:
        (shown,) = await failing(house, "FAILED")
        return bool(shown["workflow"]["status"] == "FAILED")

    await eventually(workflow_failed)
    receiver.answer = lambda event: 200
    await decide(house, item["messageId"], "replay")
    await receiver.got(*STORY, lane=poisoned)
    assert (await house.get("/api/admin/ops/outbox/failures"))["items"] == []
    await house.invariants_hold()


async def test_an_ignored_message_lets_its_lane_go_on_without_it(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url)
    (order_id,) = await orders_of_one_shard(house, 1)
    receiver.answer = refusing(order_id, 422, "order.confirmed")
    await confirm(house, order_id)
    await failing(house, "RETRYING")
    await give_up_trying(house)
    (item,) = await failing(house, "FAILED")
    await decide(house, item["messageId"], "ignore")
    await receiver.got("order.reserved", "delivery.requested", lane=order_id)
    event = await house.get(f"/api/admin/ops/outbox/events/{item['eventId']}")
    assert [(message["sink"], message["status"]) for message in event["messages"]] == [("shop", "IGNORED")]
    assert await house.metric("ops_outbox_failed_events") == 0


async def test_what_happens_to_an_order_while_its_lane_is_parked_waits_its_turn(
    house: House, receiver: Receiver
) -> None:
    await house.webhook("shop", receiver.url)
    (order_id,) = await orders_of_one_shard(house, 1)
    receiver.answer = refusing(order_id, 413, "order.confirmed")
    await confirm(house, order_id)
    await failing(house, "RETRYING")
    await give_up_trying(house)
    response = await house.call("POST", f"/api/orders/{order_id}/cancel", role="client")
    assert response.status_code == 200

    async def parked() -> bool:
        return await house.sql("SELECT count(*) FROM outbox_parked") == [(3,)]

    await eventually(parked)
    receiver.answer = lambda event: 200
    (item,) = await failing(house, "FAILED")
    await decide(house, item["messageId"], "replay")
    await receiver.got(*STORY, "order.cancelled", "delivery.cancelled", lane=order_id)


async def test_a_server_error_for_one_order_only_is_not_held_against_the_endpoint(
    house: House, receiver: Receiver
) -> None:
    await house.webhook("shop", receiver.url)
    strange, healthy = await orders_of_one_shard(house, 2)
    await receiver.got("order.reserved", lane=strange)
    await receiver.got("order.reserved", lane=healthy)
    receiver.answer = refusing(strange, 500)
    await confirm(house, strange)
    (item,) = await failing(house, "RETRYING")
    assert (item["errorClass"], item["attempts"], item["aggregateId"]) == ("unknown", 1, strange)
    await confirm(house, healthy)
    await receiver.got(*STORY, lane=healthy)
    assert await house.metric('ops_outbox_endpoint_open{endpoint="shop"}') == 0
    assert await house.sql("SELECT count(*) FROM outbox_attempts WHERE error_class = 'endpoint'") == [(0,)]


async def test_an_order_that_fails_alone_is_found_out_when_another_one_passes(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url, eventTypes=["waybill.order.confirmed"])
    strange, healthy = await orders_of_one_shard(house, 2)
    receiver.answer = refusing(strange, 503)
    await confirm(house, strange)
    await breaker(house, 1)
    await confirm(house, healthy)
    await receiver.got("order.confirmed", lane=healthy)
    (item,) = await failing(house, "RETRYING")
    assert (item["errorClass"], item["aggregateId"]) == ("unknown", strange)
    await breaker(house, 0)


async def test_a_shard_that_another_relay_took_and_left_is_carried_on(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url)
    (order_id,) = await orders_of_one_shard(house, 1)
    await receiver.got("order.reserved", lane=order_id)
    await all_is_settled(house)
    # A relay that was frozen before it took its shard does so when it wakes up, only to learn that it is too late.
    for shard in range(SHARDS):
        await house.database.transact(partial(relay.take_shard, shard=shard, owner="frozen"))
    await confirm(house, order_id)
    await receiver.got(*STORY, lane=order_id)
    assert len(receiver.requests) == len({each.headers["webhook-id"] for each in receiver.requests})


async def nothing_was_blamed_on_the_messages(house: House) -> None:
    """Assert that no message failed, was tried in vain or waits aside."""
    assert await house.sql("SELECT * FROM outbox_failures") == []
    assert await house.sql("SELECT * FROM outbox_parked") == []
    for metric in ("ops_outbox_failed_events", "ops_outbox_retry_attempts_sum", "ops_outbox_failed_transitions_total"):
        assert await house.metric(metric) == 0


@pytest.mark.parametrize("status", [401, 404, 410, 429, 500, ABORT])
async def test_an_endpoint_that_refuses_everything_costs_no_message_an_attempt(
    house: House, receiver: Receiver, status: int
) -> None:
    receiver.answer = lambda event: status
    await house.webhook("shop", receiver.url)
    order_ids = await orders_of_one_shard(house, 2)
    for order_id in order_ids:
        await confirm(house, order_id)
    await breaker(house, 1)
    await nothing_was_blamed_on_the_messages(house)
    receiver.answer = lambda event: 200
    await house.call("POST", "/api/admin/webhooks/shop/enable")
    for order_id in order_ids:
        await receiver.got(*STORY, lane=order_id)
    await breaker(house, 0)
    await nothing_was_blamed_on_the_messages(house)
    await house.invariants_hold()


async def test_an_endpoint_that_comes_back_is_noticed_by_itself(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", f"http://127.0.0.1:{free_port()}/events")
    (order_id,) = await orders_of_one_shard(house, 1)
    await confirm(house, order_id)
    await breaker(house, 1)
    await house.call("PUT", "/api/admin/webhooks/shop", {"url": receiver.url})
    await receiver.got(*STORY, lane=order_id, timeout_seconds=30.0)
    await breaker(house, 0)
    await nothing_was_blamed_on_the_messages(house)


async def test_a_broken_endpoint_holds_no_other_up(house: House, receiver: Receiver) -> None:
    await house.webhook("broken", f"http://127.0.0.1:{free_port()}/events")
    await house.webhook("shop", receiver.url)
    (order_id,) = await orders_of_one_shard(house, 1)
    await confirm(house, order_id)
    await receiver.got(*STORY, lane=order_id)
    await breaker(house, 1, "broken")
    await breaker(house, 0)


async def test_a_message_for_which_the_sink_has_no_answer_stops_no_other_lane(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url)
    # An event that nobody should be able to write: the internal sink finds no order in it.
    await house.sql("""
        WITH logged AS (
            INSERT INTO outbox_events (event_id, event_type, subject, lane, shard, data, occurred_at)
            VALUES (gen_random_uuid(), 'waybill.order.expired', 'x', 'order:x', 0, '{}', now()) RETURNING position
        )
        INSERT INTO outbox_messages (shard, endpoint_id, position, event_position, lane)
        SELECT 0, endpoint_id, position, position, 'order:x' FROM logged, outbox_endpoints WHERE kind = 'workflow'
    """)
    (order_id,) = await orders_of_one_shard(house, 1)
    await confirm(house, order_id)
    await receiver.got(*STORY, lane=order_id)
