"""Offers, what needs a person, and rounds, over HTTP."""

from __future__ import annotations

from typing import Any

from db.samples import sample_if_due
from tests.api.console.desks import logged_in
from tests.db.fleets import Fleet
from tests.houses import House
from tests.receivers import Receiver
from tests.waiting import eventually

SETTINGS = "/api/admin/ops/assignment/settings/north"
ATTENTION = "ops_assignment_needs_attention_deliveries"


async def test_an_offer_that_nobody_takes_in_time_goes_to_the_next_courier_and_then_to_a_person(
    house: House, receiver: Receiver
) -> None:
    await house.webhook("shop", receiver.url)
    await house.product("tea", 5)
    await house.call("PATCH", SETTINGS, {"acceptWindowSeconds": 1, "maxOffers": 2, "batchWindowSeconds": 0})
    await house.courier("ada")
    await house.courier("bob")
    delivery_id = await house.confirmed("k-1")
    offered = await house.delivery_becomes(delivery_id, "OFFERED")
    assert offered["courierId"] in ("ada", "bob")
    assert offered["offerExpiresAt"] > offered["timeline"][-1]["at"]
    assert (await house.get(f"/api/couriers/{offered['courierId']}"))["load"] == 1

    given_up = await house.delivery_becomes(delivery_id, "NEEDS_ATTENTION")
    assert (given_up["courierId"], given_up["offerExpiresAt"], given_up["attention"]) == (None, None, "max_offers")
    told = [each["what"] for each in given_up["timeline"]]
    assert told == ["requested", "offered", "expired", "offered", "expired", "needs_attention"]
    assert given_up["timeline"][-1]["reason"] == "max_offers: 2 couriers were asked in vain"
    [listed] = (await house.get("/api/admin/ops/assignment/attention?zone=north"))["items"]
    assert listed == given_up
    assert await house.metric(ATTENTION) == 1
    late = await house.act(delivery_id, "accept", "ada")
    assert (late.status_code, late.json()["type"], late.json()["holder"]) == (
        409,
        "/problems/assignment-conflict",
        None,
    )
    assert await house.metric('ops_assignment_conflicts_total{kind="late_accept",source="courier"}') == 1

    requeue = f"/api/admin/deliveries/{delivery_id}/requeue"
    assert (await house.call("POST", requeue, {})).status_code == 422
    assert (await house.call("POST", "/api/admin/deliveries/x/requeue", {"reason": "so"})).status_code == 404
    for _ in range(2):
        back = await house.call("POST", requeue, {"reason": "eve comes on"})
        assert (back.status_code, back.json()["status"]) == (200, "PENDING")
    assert await house.metric(ATTENTION) == 0
    audited = [each for each in (await house.get("/api/admin/ops/actions"))["items"] if "requeue" in each["action"]]
    assert [(each["actor"], each["reason"]) for each in audited] == [("admin", "eve comes on")]
    await house.courier("eve")
    assert (await house.delivery_becomes(delivery_id, "OFFERED"))["courierId"] == "eve"
    accepted = await house.act(delivery_id, "accept", "eve")
    assert (accepted.json()["status"], accepted.json()["offerExpiresAt"]) == ("ASSIGNED", None)
    refused = await house.call("POST", requeue, {"reason": "too late"})
    assert (refused.status_code, refused.json()["holder"]) == (409, "eve")
    assert (await house.get("/api/admin/ops/assignment/attention"))["items"] == []
    order_id = accepted.json()["orderId"]
    offers = ["delivery.offered"] * 3
    story = ["order.reserved", "order.confirmed", "delivery.requested", *offers, "delivery.assigned"]
    await receiver.got(*story, lane=order_id)
    await house.invariants_hold()


async def test_a_declined_offer_and_a_courier_gone_offline_wake_the_zone_at_once(house: House) -> None:
    await house.product("tea", 5)
    await house.call("PATCH", SETTINGS, {"acceptWindowSeconds": 600, "batchWindowSeconds": 0})
    await house.courier("ada")
    delivery_id = await house.confirmed("k-1")
    await house.delivery_becomes(delivery_id, "OFFERED")
    await house.courier("bob")
    await house.act(delivery_id, "decline", "ada")
    assert (await _offered_to(house, delivery_id, "bob"))["status"] == "OFFERED"
    await house.act(delivery_id, "accept", "bob")
    await house.courier("eve")
    await house.courier("bob", online=False)
    assert (await _offered_to(house, delivery_id, "eve"))["status"] == "OFFERED"
    taken = await house.call("POST", "/api/admin/assignments", {"deliveryId": delivery_id, "courierId": "ada"})
    assert (taken.status_code, taken.json()["holder"]) == (409, "eve")
    forced = {"deliveryId": delivery_id, "courierId": "ada", "force": True}
    forced_answer = await house.call("POST", "/api/admin/assignments", forced)
    assert (forced_answer.json()["status"], forced_answer.json()["courierId"]) == ("ASSIGNED", "ada")
    await house.act(delivery_id, "pickup", "ada")
    await house.courier("ada", online=False)
    carried = await house.get(f"/api/deliveries/{delivery_id}")
    assert (carried["status"], carried["courierId"], carried["attention"]) == ("PICKED_UP", "ada", "courier_offline")
    assert await house.metric(ATTENTION) == 1
    completed = await house.call("POST", f"/api/deliveries/{delivery_id}/complete", {"courierId": "ada"})
    assert (completed.json()["status"], completed.json()["attention"]) == ("DELIVERED", None)
    assert await house.metric(ATTENTION) == 0
    await house.invariants_hold()


async def _offered_to(house: House, delivery_id: str, courier_id: str) -> dict[str, Any]:
    async def reached() -> dict[str, Any] | None:
        delivery: dict[str, Any] = await house.get(f"/api/deliveries/{delivery_id}")
        return delivery if delivery["courierId"] == courier_id else None

    delivery = await eventually(reached, 15)
    assert delivery is not None
    return delivery


async def test_rounds_are_listed_by_zone_with_what_they_saw_gave_and_lost(house: House) -> None:
    fleet = Fleet(house.database)
    await house.call("PATCH", SETTINGS, {"maxBatch": 2, "batchWindowSeconds": 0})
    await fleet.couriers(3, capacity=1)
    await fleet.deliveries(3, tell=True)
    await house.delivery_becomes("d-00002", "ASSIGNED")
    path = "/api/admin/ops/assignment/rounds"

    async def both() -> bool:
        return len((await house.get(f"{path}?zone=north"))["items"]) >= 2

    await eventually(both)
    everything = (await house.get(f"{path}?zone=north"))["items"]
    first_page = await house.get(f"{path}?zone=north&limit=1")
    second_page = await house.get(f"{path}?zone=north&limit=1&cursor={first_page['nextCursor']}")
    assert first_page["items"] + second_page["items"] == everything[:2]
    assert (await house.get(path))["items"] == everything
    assert (await house.get(f"{path}?zone=south"))["items"] == []
    assert sum(each["assignedCount"] for each in everything) == 3
    oldest = await house.get(f"{path}/{everything[-1]['roundId']}")
    summary = {name: oldest[name] for name in everything[-1]}
    assert summary == everything[-1]
    assert [each["deliveryId"] for each in oldest["inputs"]["deliveries"]] == ["d-00000", "d-00001"]
    assert len(oldest["inputs"]["couriers"]) == oldest["courierCount"] == 3
    assert {each["deliveryId"] for each in oldest["pairs"]} == {"d-00000", "d-00001"}
    assert all(each["costSeconds"] > 0 for each in oldest["pairs"])
    assert oldest["conflicts"] == []
    explanation = oldest["explanation"]
    assert explanation["gapSeconds"] == 0
    assert {each["deliveryId"]: each["courierId"] for each in explanation["deliveries"]} == {
        each["deliveryId"]: each["courierId"] for each in oldest["pairs"]
    }
    assert all(each["text"] and len(each["runnersUp"]) == 2 for each in explanation["deliveries"])
    assert (await house.call("GET", f"{path}/nope")).status_code == 404
    assert (await house.call("GET", path, role="courier")).status_code == 403
    assert (await house.call("GET", f"{path}?cursor=nonsense")).status_code == 422


async def test_what_came_to_nothing_without_a_conflict_is_counted_apart(quiet_house: House) -> None:
    fleet = Fleet(quiet_house.database)
    delivery, other = await fleet.deliveries(2)
    ada, bob = await fleet.couriers(2)
    for courier in (ada, ada, bob):
        await quiet_house.call("POST", "/api/admin/assignments", {"deliveryId": delivery, "courierId": courier})
    await quiet_house.call("POST", "/api/admin/routes", {"courierId": ada, "deliveryIds": [other, other]})
    lost = {"source": "manual", "kind": "delivery_taken", "total": 1}
    unknown = {"lastFiveMinutes": None, "lastHour": None}  # nobody took samples yet
    assert await quiet_house.get("/api/admin/ops/assignment/conflicts") == {
        "items": [lost],
        "zones": [{"zone": "north", "total": 1, **unknown, "items": [{**lost, **unknown}]}],
        "notConflicts": [
            {"source": "manual", "kind": "replay", "total": 1},
            {"source": "route", "kind": "duplicate", "total": 1},
        ],
    }
    assert await quiet_house.metric('ops_assignment_conflicts_total{kind="delivery_taken",source="manual"}') == 1
    metrics = (await quiet_house.call("GET", "/api/admin/ops/metrics")).text
    assert 'kind="replay"' not in metrics


async def test_the_zone_where_most_is_lost_now_comes_first_however_much_others_lost_before(quiet_house: House) -> None:
    await quiet_house.sql(
        "INSERT INTO zone_conflict_counts (zone, source, kind, bucket, total)"
        " VALUES ('north', 'auto', 'capacity', 0, 900)"
    )
    # As the version before counts, which knows no zones: its statement goes on to work while versions change.
    await quiet_house.sql(
        "INSERT INTO conflict_counts (source, kind, bucket, total)"
        " VALUES ('auto', 'capacity', 0, 950), ('auto', 'replay', 0, 7)"
        " ON CONFLICT (source, kind, bucket) DO UPDATE SET total = conflict_counts.total + excluded.total"
    )
    assert await sample_if_due(quiet_house.database, 5)
    await quiet_house.sql("UPDATE metric_samples SET at = at - interval '50 minutes'")
    for table in ("conflict_counts", "zone_conflict_counts"):
        await quiet_house.sql(f"UPDATE {table} SET total = total + 40 WHERE kind = 'capacity'")
    await eventually(lambda: sample_if_due(quiet_house.database, 5))
    for table, zone in (("conflict_counts", ""), ("zone_conflict_counts", "'south', ")):
        await quiet_house.sql(
            f"INSERT INTO {table} VALUES ({zone}'manual', 'delivery_taken', 3, 4),"
            f" ({zone}'manual', 'delivery_taken', 9, 5)"
        )
    report = await quiet_house.get("/api/admin/ops/assignment/conflicts")
    figures = ("zone", "lastFiveMinutes", "lastHour", "total")
    assert [[zone[each] for each in figures] for zone in report["zones"]] == [
        ["south", 9, 9, 9],
        ["north", 0, 40, 940],
        [None, 0, 0, 50],
    ]
    [lost] = report["zones"][0]["items"]
    assert lost == {"source": "manual", "kind": "delivery_taken", "total": 9, "lastFiveMinutes": 9, "lastHour": 9}
    assert [each["total"] for each in report["items"]] == [990, 9]
    assert await quiet_house.metric('ops_assignment_conflicts_total{kind="capacity",source="auto"}') == 990
    async with logged_in(quiet_house) as desk:
        page = await desk.get("/assignment")
        assert "by manual: delivery taken" in page
        assert page.index('id="mend-south"') < page.index('id="mend-north"')
        assert 'id="conflicts-"' not in page  # nothing lately
        assert "zoneConflicts" not in (await desk.http.get("/console/charts")).text
