"""Couriers, deliveries and assigners over HTTP, on the real stack."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.houses import House, open_house
from tests.receivers import Receiver
from tests.waiting import eventually

HERE = {"lat": 52.52, "lng": 13.40}


async def by_hand(house: House, **patch: Any) -> None:
    """Let only people assign in the zone."""
    answer = await house.call(
        "PATCH", "/api/admin/ops/assignment/settings/north", {"mode": "manual", "batchWindowSeconds": 0, **patch}
    )
    assert answer.status_code == 200, answer.text


async def test_an_order_goes_to_the_door_and_its_receiver_reads_the_whole_story(
    house: House, receiver: Receiver
) -> None:
    await house.webhook("shop", receiver.url)
    await house.product("tea", 5)
    await house.courier("ada")
    delivery_id = await house.confirmed("k-1")
    assert (await house.delivery_becomes(delivery_id, "ASSIGNED"))["courierId"] == "ada"
    assert (await house.get("/api/couriers/ada"))["load"] == 1
    assert [each["deliveryId"] for each in (await house.get("/api/couriers/ada/deliveries"))["items"]] == [delivery_id]

    for action, status in (("accept", "ASSIGNED"), ("pickup", "PICKED_UP"), ("complete", "DELIVERED")):
        for _ in range(2):
            answer = await house.act(delivery_id, action, "ada")
            assert (answer.status_code, answer.json()["status"]) == (200, status), answer.text
    order = await house.get(f"/api/orders/{answer.json()['orderId']}")
    assert (order["status"], order["delivery"]) == ("DELIVERED", {"status": "DELIVERED", "courierId": "ada"})
    assert (await house.get("/api/couriers/ada"))["load"] == 0
    await receiver.got(
        "order.reserved",
        "order.confirmed",
        "delivery.requested",
        "delivery.assigned",
        "delivery.picked_up",
        "order.delivered",
        lane=order["orderId"],
    )
    assert not any(each.type == "zone.woken" for each in receiver.accepted)
    description = await _closed(house, order["orderId"])
    assert description.history_length <= 24
    events = (await house.workflow(order["orderId"]).fetch_history()).events
    assert sum(event.HasField("workflow_task_scheduled_event_attributes") for event in events) == 3
    await house.invariants_hold()


async def _closed(house: House, order_id: str) -> Any:
    async def closed() -> Any:
        description = await house.workflow(order_id).describe()
        return description if description.close_time is not None else None

    description = await eventually(closed)
    assert description.status.name == "COMPLETED"
    return description


async def test_a_delivery_later_than_promised_is_marked_late_once(
    database_url: str, client: Any, installation: str, receiver: Receiver
) -> None:
    async with open_house(database_url, client, installation, promise_seconds=1) as house:
        await house.webhook("shop", receiver.url)
        await house.product("tea", 5)
        delivery_id = await house.confirmed("k-1")

        async def late() -> bool:
            return bool((await house.get(f"/api/deliveries/{delivery_id}"))["late"])

        await eventually(late)
        await house.courier("ada")
        await house.delivery_becomes(delivery_id, "ASSIGNED")
        await house.act(delivery_id, "pickup", "ada")
        done = (await house.act(delivery_id, "complete", "ada")).json()
        assert done["late"]
        types = ["order.reserved", "order.confirmed", "delivery.requested", "delivery.late", "delivery.assigned"]
        await receiver.got(*types, "delivery.picked_up", "order.delivered", lane=done["orderId"])


async def test_16_hands_give_10_deliveries_to_8_couriers_of_capacity_3(house: House) -> None:
    await house.product("tea", 50)
    await by_hand(house)
    deliveries = await asyncio.gather(*(house.confirmed(f"k-{number}") for number in range(10)))
    await asyncio.gather(*(house.courier(f"c-{number}") for number in range(8)))

    async def hand(number: int) -> list[httpx.Response]:
        order = deliveries[number % 10 :] + deliveries[: number % 10]
        return [
            await house.call(
                "POST", "/api/admin/assignments", {"deliveryId": each, "courierId": f"c-{(number + turn) % 8}"}
            )
            for turn, each in enumerate(order)
        ]

    answers = [answer for answers in await asyncio.gather(*map(hand, range(16))) for answer in answers]
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 409}
    holders = {each: (await house.get(f"/api/deliveries/{each}"))["courierId"] for each in deliveries}
    assert all(holders.values())
    assert max(Counter(holders.values()).values()) <= 3
    lost = [answer.json() for answer in answers if answer.status_code == 409]
    taken = [each for each in lost if each["type"] == "/problems/assignment-conflict"]
    assert taken
    assert all(each["holder"] == holders[each["conflicts"][0]["deliveryId"]] for each in taken)
    conflicts = (await house.get("/api/admin/ops/assignment/conflicts"))["items"]
    assert sum(each["total"] for each in conflicts) == len(lost)
    assert {each["source"] for each in conflicts} == {"manual"}
    metric = 'ops_assignment_conflicts_total{kind="delivery_taken",source="manual"}'
    assert await house.metric(metric) == len(taken)
    await house.invariants_hold()


async def test_manual_wins_over_rounds_and_pins(house: House) -> None:
    await house.product("tea", 5)
    await house.courier("ada", online=False)
    await house.courier("bob")
    delivery_id = await house.confirmed("k-1")
    await house.delivery_becomes(delivery_id, "ASSIGNED")
    same = await house.call("POST", "/api/admin/assignments", {"deliveryId": delivery_id, "courierId": "bob"})
    assert (same.status_code, same.json()["pinned"]) == (200, True)
    offline = await house.call(
        "POST", "/api/admin/assignments", {"deliveryId": await house.confirmed("k-2"), "courierId": "ada"}
    )
    assert (offline.status_code, offline.json()["type"]) in (
        (409, "/problems/courier-unavailable"),
        (409, "/problems/assignment-conflict"),
    )
    nobody = await house.call("POST", "/api/admin/assignments", {"deliveryId": "nope", "courierId": "ada"})
    assert nobody.status_code == 404


async def test_a_route_is_all_or_nothing_unless_partial(house: House) -> None:
    await house.product("tea", 9)
    await by_hand(house)
    ids = [await house.confirmed(f"k-{number}") for number in range(4)]
    await house.courier("ada")
    await house.courier("bob")
    await house.call("POST", "/api/admin/assignments", {"deliveryId": ids[0], "courierId": "bob"})
    refused = await house.call("POST", "/api/admin/routes", {"courierId": "ada", "deliveryIds": ids[:3]})
    assert (refused.status_code, refused.json()["holder"]) == (409, "bob")
    assert (await house.get("/api/couriers/ada"))["load"] == 0
    some = await house.call("POST", "/api/admin/routes", {"courierId": "ada", "deliveryIds": ids[:3], "partial": True})
    assert some.json()["assigned"] == ids[1:3]
    assert [each["holder"] for each in some.json()["conflicts"]] == ["bob"]
    too_much = await house.call("POST", "/api/admin/routes", {"courierId": "bob", "deliveryIds": ids})
    assert too_much.status_code == 409
    over = await house.call("PUT", "/api/couriers/ada", {"zone": "north", **HERE, "capacity": 1, "online": True})
    assert (over.status_code, over.json()["type"]) == (409, "/problems/courier-over-capacity")
    await house.invariants_hold()


async def test_a_declined_courier_is_not_asked_again_for_that_delivery(house: House) -> None:
    await house.product("tea", 5)
    await house.courier("ada")
    delivery_id = await house.confirmed("k-1")
    await house.delivery_becomes(delivery_id, "ASSIGNED")
    for _ in range(2):
        declined = await house.act(delivery_id, "decline", "ada")
        assert (declined.status_code, declined.json()["status"], declined.json()["courierId"]) == (200, "PENDING", None)
    await house.courier("bob", lat=53.5)
    assert (await house.delivery_becomes(delivery_id, "ASSIGNED"))["courierId"] == "bob"
    for _ in range(2):  # asked again, it is the same late courier
        late = await house.act(delivery_id, "accept", "ada")
        assert (late.status_code, late.json()["holder"]) == (409, "bob")
    assert (await house.act(delivery_id, "pickup", "nobody")).status_code == 409  # never had it: no conflict
    assert await house.metric('ops_assignment_conflicts_total{kind="late_accept",source="courier"}') == 1
    await house.invariants_hold()


async def test_a_cancelled_order_frees_its_courier(house: House) -> None:
    await house.product("tea", 5)
    await house.courier("ada")
    delivery_id = await house.confirmed("k-1")
    delivery = await house.delivery_becomes(delivery_id, "ASSIGNED")
    answer = await house.call("POST", f"/api/orders/{delivery['orderId']}/cancel", role="client")
    assert answer.json()["status"] == "CANCELLED"
    assert (await house.get("/api/couriers/ada"))["load"] == 0
    assert (await house.act(delivery_id, "pickup", "ada")).status_code == 409
    late = await house.call("POST", "/api/admin/assignments", {"deliveryId": delivery_id, "courierId": "ada"})
    assert late.status_code == 409
    assert (await house.get("/api/admin/ops/assignment/conflicts"))["items"] == []  # a client's cancel is no conflict
    await house.invariants_hold()


async def test_a_delivery_that_nobody_may_carry_keeps_the_others_waiting_for_nothing(house: House) -> None:
    await house.product("tea", 5)
    await house.call("PATCH", "/api/admin/ops/assignment/settings/north", {"maxBatch": 1})
    await house.courier("ada")
    declined = await house.confirmed("k-1")
    await house.delivery_becomes(declined, "ASSIGNED")
    await house.act(declined, "decline", "ada")
    other = await house.confirmed("k-2")
    assert (await house.delivery_becomes(other, "ASSIGNED"))["courierId"] == "ada"
    assert (await house.get(f"/api/deliveries/{declined}"))["status"] == "PENDING"


async def test_cancel_racing_pickup_has_one_winner(house: House) -> None:
    await house.product("tea", 50)
    await house.courier("ada", capacity=20)
    ids = await asyncio.gather(*(house.confirmed(f"k-{number}") for number in range(20)))
    orders = [(await house.delivery_becomes(each, "ASSIGNED"))["orderId"] for each in ids]
    answers = await asyncio.gather(
        *(house.act(each, "pickup", "ada") for each in ids),
        *(house.call("POST", f"/api/orders/{each}/cancel", role="client") for each in orders),
    )
    for picked, cancelled in zip(answers[:20], answers[20:], strict=True):
        assert {picked.status_code, cancelled.status_code} == {200, 409}
    await house.invariants_hold()


async def test_a_zones_knobs_are_changed_live_and_audited(quiet_house: House) -> None:
    path = "/api/admin/ops/assignment/settings/south"
    assert (await quiet_house.call("GET", path)).status_code == 404
    changed = await quiet_house.call("PATCH", path, {"batchWindowSeconds": 0.5, "maxBatch": 7, "reason": "rush hour"})
    assert changed.json() == {
        "zone": "south",
        "batchWindowSeconds": 0.5,
        "maxBatch": 7,
        "parallelRounds": 1,
        "topCandidates": 16,
        "acceptWindowSeconds": 0,
        "maxOffers": 3,
        "mode": "auto",
    }
    assert await quiet_house.get(path) == changed.json()
    action = (await quiet_house.get("/api/admin/ops/actions"))["items"][0]
    assert (action["action"], action["reason"], action["after"]["maxBatch"]) == ("assignment.settings", "rush hour", 7)
    assert (await quiet_house.call("PATCH", path, {"mode": "chaos"})).status_code == 422


async def test_a_round_can_be_asked_for(house: House) -> None:
    await house.product("tea", 5)
    await by_hand(house)
    delivery_id = await house.confirmed("k-1")
    await house.courier("ada")
    await house.sql("UPDATE zones SET mode = 'auto'")
    answer = await house.call("POST", "/api/admin/ops/assignment/run", {"zone": "north"})
    assert answer.status_code == 200
    await house.delivery_becomes(delivery_id, "ASSIGNED")


@pytest.mark.parametrize("bad", [{"capacity": 0}, {"lat": 91}, {"zone": ""}, {"online": "yes"}, {"colour": 1}], ids=str)
async def test_a_courier_that_cannot_be_is_422(quiet_house: House, bad: dict[str, Any]) -> None:
    body = {"zone": "north", **HERE, "capacity": 3, "online": True, **bad}
    answer = await quiet_house.call("PUT", "/api/couriers/ada", body)
    assert answer.status_code == 422


async def test_couriers_and_deliveries_that_are_not_there_are_404(quiet_house: House) -> None:
    for path in ("/api/couriers/x", "/api/couriers/x/deliveries", "/api/deliveries/x"):
        assert (await quiet_house.call("GET", path)).status_code == 404
    assert (await quiet_house.act("x", "pickup", "ada")).status_code == 404
    assert (await quiet_house.act("x", "complete", "ada")).status_code == 404
    assert (await quiet_house.act("x", "juggle", "ada")).status_code in (404, 422)


async def test_giving_deliveries_to_a_courier_who_is_not_there_is_404_and_no_conflict(quiet_house: House) -> None:
    one = await quiet_house.call("POST", "/api/admin/assignments", {"deliveryId": "d-1", "courierId": "nobody"})
    route = await quiet_house.call("POST", "/api/admin/routes", {"deliveryIds": ["d-1"], "courierId": "nobody"})
    for answer in (one, route):
        assert (answer.status_code, answer.json()["title"]) == (404, "There is no such courier.")
    assert (await quiet_house.get("/api/admin/ops/assignment/conflicts"))["items"] == []
