"""Every admin action is audited with who, when and why, in the API's own words."""

from __future__ import annotations

from typing import Any

from tests.houses import House, order_body


async def audit(house: House, target: str) -> list[dict[str, Any]]:
    """What was done to one thing, oldest first."""
    items = (await house.get("/api/admin/ops/actions"))["items"]
    return [each for each in reversed(items) if each["target"] == target]


async def done(house: House, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """What an admin's call answers, which succeeds."""
    answer = await house.call(method, path, body)
    assert answer.is_success, answer.text
    return dict(answer.json())


def names(value: Any) -> set[str]:
    """All names within a value."""
    if isinstance(value, dict):
        return set(value).union(*(names(each) for each in value.values()))
    return set()


async def test_before_and_after_are_told_in_the_names_of_the_api(quiet_house: House) -> None:
    url = {"url": "http://127.0.0.1:9/"}
    await done(
        quiet_house, "PUT", "/api/admin/webhooks/shop", {**url, "unorderedEventTypes": ["waybill.order.reserved"]}
    )
    await done(quiet_house, "PUT", "/api/admin/webhooks/shop", {**url, "eventTypes": ["waybill.order.reserved"]})
    await done(quiet_house, "PATCH", "/api/admin/ops/assignment/settings/north", {"maxBatch": 7})
    bulk = {"filter": {"errorClass": "event"}, "action": "ignore", "dryRun": True, "reason": "drill"}
    await done(quiet_house, "POST", "/api/admin/ops/outbox/replays", bulk)
    told = await quiet_house.get("/api/admin/ops/actions")
    spelled = {name for item in told["items"] for name in names(item["before"]) | names(item["after"])}
    assert {"eventTypes", "unorderedEventTypes", "maxBatch", "batchWindowSeconds", "dryRun", "errorClass"} <= spelled
    assert not [name for name in spelled if "_" in name]


async def test_a_webhook_that_was_disabled_is_not_audited_as_enabled_until_it_is(quiet_house: House) -> None:
    body = {"url": "http://127.0.0.1:9/", "enabled": True}
    await done(quiet_house, "PUT", "/api/admin/webhooks/shop", body)
    await quiet_house.sql("UPDATE outbox_endpoints SET disabled_reason = 'it answered 410 Gone' WHERE name = 'shop'")
    put = await done(quiet_house, "PUT", "/api/admin/webhooks/shop", {**body, "eventTypes": []})
    await done(quiet_house, "POST", "/api/admin/webhooks/shop/enable")
    _, changed, enabled = await audit(quiet_house, "webhook:shop")
    assert put["enabled"] is changed["before"]["enabled"] is changed["after"]["enabled"] is False
    assert (enabled["before"]["enabled"], enabled["after"]["enabled"]) == (False, True)


async def test_a_zone_that_was_never_used_is_audited_when_its_settings_are_made(quiet_house: House) -> None:
    path = "/api/admin/ops/assignment/settings/zq"
    assert (await quiet_house.call("GET", path)).status_code == 404
    made = await done(quiet_house, "PATCH", path, {"mode": "auto"})
    [action] = await audit(quiet_house, "zone:zq")
    assert (action["before"], {"zone": "zq", **action["after"]}) == (None, made)


SETTINGS: list[tuple[str, str, dict[str, Any], str]] = [
    ("PATCH", "/api/admin/ops/assignment/settings/north", {"mode": "manual"}, "zone:north"),
    ("PUT", "/api/admin/products/tea", {"name": "Tea", "stock": 5}, "product:tea"),
    ("PUT", "/api/admin/webhooks/shop", {"url": "http://127.0.0.1:9/"}, "webhook:shop"),
    ("POST", "/api/admin/webhooks/shop/enable", {}, "webhook:shop"),
]


async def test_setting_what_is_set_already_is_audited_where_a_reason_came_with_it(quiet_house: House) -> None:
    for method, path, body, target in SETTINGS:
        await done(quiet_house, method, path, body)
        known = len(await audit(quiet_house, target))
        await done(quiet_house, method, path, body)
        assert len(await audit(quiet_house, target)) == known, path
        await done(quiet_house, method, path, {**body, "reason": "counted"})
        *_, last = await audit(quiet_house, target)
        assert (last["reason"], last["before"]) == ("counted", last["after"]), path
        assert last["actor"] == "admin"


async def test_what_an_admin_does_as_a_courier_is_audited_and_what_couriers_do_is_not(quiet_house: House) -> None:
    courier = {"zone": "north", "lat": 52.5, "lng": 13.4, "capacity": 3, "online": True}
    await quiet_house.courier("ada")
    await done(quiet_house, "PUT", "/api/couriers/ada", {**courier, "capacity": 5, "reason": "a bigger bag"})
    [put] = await audit(quiet_house, "courier:ada")
    assert (put["action"], put["actor"], put["reason"]) == ("courier.put", "admin", "a bigger bag")
    assert (put["before"]["capacity"], put["after"]["capacity"]) == (3, 5)
    assert (put["before"]["lng"], put["after"]["lng"]) == (13.4, 13.4)
    for lng in (13.5, 13.6):
        await done(quiet_house, "PUT", "/api/couriers/ada", {**courier, "capacity": 5, "lng": lng})
    assert await audit(quiet_house, "courier:ada") == [put]
    await done(quiet_house, "PUT", "/api/couriers/ada", {**courier, "capacity": 5, "online": False})
    *_, left = await audit(quiet_house, "courier:ada")
    assert left["after"] == {"zone": "north", "capacity": 5, "online": False}
    await done(quiet_house, "PUT", "/api/couriers/ada", {**courier, "capacity": 5, "reason": "she is back"})

    await quiet_house.sql(
        "INSERT INTO orders (order_id, request_hash, customer_id, zone, status, lines, dropoff, hold_seconds, timeline)"
        " VALUES ('o-1', '', 'c', 'north', 'CONFIRMED', '[]', '{}', 900, '[]')"
    )
    await quiet_house.sql(
        "INSERT INTO deliveries (delivery_id, order_id, zone, status, promised_at, dropoff, timeline)"
        " VALUES ('d-1', 'o-1', 'north', 'PENDING', now() + interval '1 hour', '{}', '[]')"
    )
    await done(quiet_house, "POST", "/api/admin/assignments", {"deliveryId": "d-1", "courierId": "ada"})
    assert (await quiet_house.act("d-1", "accept", "ada")).status_code == 200
    assert await audit(quiet_house, "delivery:d-1") == []
    acting = {"courierId": "ada", "reason": "her phone is dead"}
    assert (await quiet_house.call("POST", "/api/deliveries/d-1/complete", acting)).status_code == 409
    for action in ("pickup", "complete", "complete"):
        await done(quiet_house, "POST", f"/api/deliveries/d-1/{action}", acting)
    told = [
        (each["action"], each["reason"], each["before"]["status"], each["after"]["status"])
        for each in await audit(quiet_house, "delivery:d-1")
    ]
    assert told == [
        ("delivery.pickup", "her phone is dead", "ASSIGNED", "PICKED_UP"),
        ("delivery.complete", "her phone is dead", "PICKED_UP", "DELIVERED"),
        ("delivery.complete", "her phone is dead", "DELIVERED", "DELIVERED"),
    ]


async def test_what_an_admin_asks_of_an_order_is_audited_with_what_came_of_it(house: House) -> None:
    await house.product("tea", 5)
    order_id = await house.reserved("k-1", {"tea": 1})
    path = f"/api/orders/{order_id}"
    await done(house, "POST", f"{path}/extend", {"holdSeconds": 5000, "reason": "she is on the phone"})
    assert (await house.call("POST", f"{path}/confirm", role="client")).status_code == 200
    for reason in ({"reason": "fraud"}, {}, {"reason": "fraud, again"}):
        await done(house, "POST", f"{path}/cancel", reason)
    assert (await house.call("POST", f"{path}/confirm", {"reason": "no fraud"})).status_code == 409
    extended, *cancelled = await audit(house, f"order:{order_id}")
    assert (extended["action"], extended["actor"], extended["reason"]) == (
        "order.extend",
        "admin",
        "she is on the phone",
    )
    assert extended["before"]["expiresAt"] < extended["after"]["expiresAt"]
    assert [
        (each["action"], each["reason"], each["before"]["status"], each["after"]["status"]) for each in cancelled
    ] == [
        ("order.cancel", "fraud", "CONFIRMED", "CANCELLED"),
        ("order.cancel", "fraud, again", "CANCELLED", "CANCELLED"),
    ]
    made = await house.call("POST", "/api/orders", order_body({"tea": 1}), headers={"Idempotency-Key": "k-1"})
    [action] = await audit(house, f"order:{made.json()['orderId']}")
    assert (action["action"], action["before"], action["after"]["status"]) == ("order.start", None, "RESERVED")


async def test_what_an_admin_asked_of_an_order_stands_in_the_audit_when_nobody_is_home(quiet_house: House) -> None:
    await quiet_house.sql(
        "INSERT INTO orders (order_id, request_hash, customer_id, zone, status, lines, dropoff, hold_seconds, timeline)"
        " VALUES ('o-1', '', 'c', 'north', 'RESERVED', '[]', '{}', 900, '[]')"
    )
    assert (await quiet_house.call("POST", "/api/orders/o-1/cancel", {"reason": "fraud"})).status_code == 503
    [action] = await audit(quiet_house, "order:o-1")
    assert (action["reason"], action["after"]) == ("fraud", {"problem": "no-worker"})
