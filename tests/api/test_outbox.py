"""Webhooks and failing messages over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.activities.lanes import stage_failed
from tests.houses import TOKENS, House
from tests.receivers import Receiver, verified
from tests.waiting import eventually

FAILURES = "/api/admin/ops/outbox/failures"


async def test_a_webhook_tells_its_secret_only_when_it_is_made_or_rotated(house: House, receiver: Receiver) -> None:
    path = "/api/admin/webhooks/shop"
    made = await house.call("PUT", path, {"url": receiver.url, "reason": "new shop"})
    assert (made.status_code, made.json()["secret"][:6]) == (201, "whsec_")
    replaced = await house.call("PUT", path, {"url": receiver.url, "eventTypes": ["waybill.inventory.adjusted"]})
    assert (replaced.status_code, "secret" in replaced.json()) == (200, False)
    assert "secret" not in await house.get(path)
    rotated = await house.call("POST", f"{path}/rotate-secret", {"reason": "it leaked"})
    assert rotated.json()["secret"] != made.json()["secret"]
    await house.product("tea", 1)
    await receiver.got("inventory.adjusted")
    for secret in (made.json()["secret"], rotated.json()["secret"]):
        verified(receiver.accepted[0], secret)
    actions = (await house.get("/api/admin/ops/actions"))["items"]
    webhook_actions = [each["action"] for each in actions if each["target"] == "webhook:shop"]
    assert webhook_actions == ["webhook.rotate_secret", "webhook.put", "webhook.put"]
    assert "whsec_" not in str(actions)


async def test_a_webhook_gets_only_the_events_it_asked_for(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url, eventTypes=["waybill.order.confirmed"])
    await house.product("tea", 5)
    order_id = await house.reserved("k-1", {"tea": 1})
    await house.call("POST", f"/api/orders/{order_id}/confirm")
    await receiver.got("order.confirmed")


async def test_a_disabled_webhook_gets_its_messages_when_it_is_enabled(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url, enabled=False)
    await house.product("tea", 5)
    await house.reserved("k-1", {"tea": 1})
    assert await house.metric("ops_outbox_backlog_size") == 2
    assert await house.metric('ops_outbox_endpoint_open{endpoint="shop"}') == 0
    assert receiver.requests == []
    answer = await house.call("POST", "/api/admin/webhooks/shop/enable")
    assert answer.json()["enabled"]
    await _all_arrived(receiver, 2)
    assert (await house.get("/api/admin/ops/invariants"))["ok"]


async def _all_arrived(receiver: Receiver, count: int) -> None:
    async def arrived() -> bool:
        return len(receiver.accepted) == count

    await eventually(arrived)


async def test_a_deleted_webhook_is_gone_and_its_name_can_be_used_again(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url, enabled=False)
    await house.product("tea", 5)
    await house.sql("UPDATE outbox_endpoints SET deletion_began_at = now(), enabled = false WHERE name = 'shop'")
    refused = await house.call("PUT", "/api/admin/webhooks/shop", {"url": receiver.url})
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/webhook-being-deleted")
    assert (await house.get("/api/admin/webhooks/shop"))["disabledReason"] == "it is being deleted"
    assert (await house.call("DELETE", "/api/admin/webhooks/shop?reason=closed")).status_code == 204
    assert (await house.call("DELETE", "/api/admin/webhooks/shop")).status_code == 404
    assert (await house.call("GET", "/api/admin/webhooks/shop")).status_code == 404
    assert await house.metric("ops_outbox_backlog_size") == 0
    await house.webhook("shop", receiver.url)
    assert [each["name"] for each in (await house.get("/api/admin/webhooks"))["items"]] == ["shop"]


BAD_WEBHOOKS: list[tuple[str, dict[str, Any]]] = [
    ("shop", {"url": "ftp://example.com/"}),
    ("shop", {"url": "http://user:secret@example.com/"}),
    ("shop", {"url": "http:///nohost"}),
    ("shop", {"url": "http://example.com:99999/"}),
    ("shop", {"url": "http://exa mple.com/"}),
    ("shop", {"url": "http://example.com/\0"}),
    ("shop", {"url": "http://example.com/", "eventTypes": ["waybill.order.teleported"]}),
    ("shop", {"url": "http://example.com/", "colour": "green"}),
    ("workflow", {"url": "http://example.com/"}),
    ("email", {"url": "http://example.com/"}),
]


@pytest.mark.parametrize(("name", "body"), BAD_WEBHOOKS, ids=str)
async def test_a_webhook_that_cannot_be_meant_is_422(quiet_house: House, name: str, body: dict[str, Any]) -> None:
    answer = await quiet_house.call("PUT", f"/api/admin/webhooks/{name}", body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


async def test_a_failing_message_is_listed_with_its_workflow_and_replayed(house: House, receiver: Receiver) -> None:
    receiver.answer = lambda event: 400
    await house.webhook("shop", receiver.url)
    await house.product("tea", 5)

    async def retrying() -> Any:
        items = (await house.get(f"{FAILURES}?status=RETRYING"))["items"]
        return items[0] if items and items[0]["workflow"]["status"] == "RUNNING" else None

    item = await eventually(retrying)
    assert (item["sink"], item["errorClass"], item["aggregateId"]) == ("shop", "event", "tea")
    assert item["lastError"].startswith("HTTP 400")
    assert (await house.get(FAILURES))["items"] == []  # FAILED is what is listed when nothing is said
    assert (await house.get(f"{FAILURES}?status=RETRYING&sink=other"))["items"] == []
    event = await house.get(f"/api/admin/ops/outbox/events/{item['eventId']}")
    assert event["messages"][0]["status"] == "RETRYING"
    assert event["payload"]["sku"] == "tea"

    receiver.answer = lambda event: 200
    for _ in range(2):
        answer = await house.call("POST", f"{FAILURES}/{item['messageId']}/replay", {"reason": "the shop mended it"})
        assert answer.status_code in (200, 409)
    await receiver.got("inventory.adjusted")
    assert receiver.accepted[0].headers["webhook-id"] == item["eventId"]
    assert (await house.get(f"{FAILURES}?status=RETRYING"))["items"] == []

    async def delivered() -> bool:
        event = await house.get(f"/api/admin/ops/outbox/events/{item['eventId']}")
        return [message["status"] for message in event["messages"]] == ["DELIVERED"]

    await eventually(delivered)
    late = await house.call("POST", f"{FAILURES}/{item['messageId']}/ignore", {"reason": "too late"})
    assert (late.status_code, late.json()["messageStatus"]) == (409, "DELIVERED")


async def test_an_ignored_message_is_given_up_with_a_reason(house: House, receiver: Receiver) -> None:
    receiver.answer = lambda event: 400
    await house.webhook("shop", receiver.url)
    await house.product("tea", 5)

    async def failing() -> Any:
        items = (await house.get(f"{FAILURES}?status=RETRYING"))["items"]
        return items[0] if items else None

    item = await eventually(failing)
    path = f"{FAILURES}/{item['messageId']}/ignore"
    assert (await house.call("POST", path, {})).status_code == 422
    answers = [await house.call("POST", path, {"reason": "test data"}) for _ in range(2)]
    assert [answer.json()["status"] for answer in answers] == ["IGNORED", "IGNORED"]
    actions = (await house.get("/api/admin/ops/actions"))["items"]
    assert (actions[0]["action"], actions[0]["reason"]) == ("outbox.ignore", "test data")
    assert [each["action"] for each in actions].count("outbox.ignore") == 1
    assert await house.metric("ops_outbox_backlog_size") == 0


@pytest.mark.parametrize("message", ["nope", "1-1", "1-99999999999", "9" * 30 + "-1", "1", "-", "١-١"])
async def test_a_message_that_never_failed_is_404(quiet_house: House, message: str) -> None:
    answer = await quiet_house.call("POST", f"{FAILURES}/{message}/replay", {})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert (await quiet_house.call("GET", "/api/admin/ops/outbox/events/nope")).status_code == 404


async def test_a_payload_that_the_receiver_refused_is_fixed_under_its_id(house: House, receiver: Receiver) -> None:
    receiver.answer = lambda event: 200 if "note" in event["data"] else 422
    await house.webhook("shop", receiver.url)
    await house.product("tea", 5)

    async def failing() -> Any:
        items = (await house.get(f"{FAILURES}?status=RETRYING"))["items"]
        return items[0] if items else None

    item = await eventually(failing)
    payload = (await house.get(f"/api/admin/ops/outbox/events/{item['eventId']}"))["payload"]
    body = {"payload": {**payload, "note": "by hand"}, "reason": "the shop wants a note"}
    for _ in range(2):
        answer = await house.call("POST", f"{FAILURES}/{item['messageId']}/fix", body)
        assert answer.status_code == 200
        assert (answer.json()["eventId"], answer.json()["fixes"]) == (item["eventId"], None)
    await receiver.got("inventory.adjusted")
    assert receiver.accepted[0].headers["webhook-id"] == item["eventId"]
    assert receiver.accepted[0].event["data"] == body["payload"]
    assert (await house.get(f"{FAILURES}?status=RETRYING"))["items"] == []

    async def told() -> bool:
        event = await house.get(f"/api/admin/ops/outbox/events/{item['eventId']}")
        [message] = event["messages"]
        assert (event["payload"], message["fixedPayload"], message["fixedBy"]) == (payload, body["payload"], None)
        return bool(message["attempts"][-1]["outcome"] == "delivered")

    await eventually(told)
    late = {**body, "payload": payload}
    assert (await house.call("POST", f"{FAILURES}/{item['messageId']}/fix", late)).status_code == 409


async def test_a_payload_that_may_have_arrived_is_fixed_by_a_new_event(house: House, receiver: Receiver) -> None:
    def answer(event: dict[str, Any]) -> int:
        return 500 if event["subject"] == "bad" and "fixes" not in event else 200

    receiver.answer = answer
    await house.webhook("shop", receiver.url)
    await house.product("good", 5)
    await receiver.got("inventory.adjusted")
    await house.product("bad", 5)

    async def failing() -> Any:
        items = (await house.get(f"{FAILURES}?status=RETRYING"))["items"]
        return items[0] if items else None

    item = await eventually(failing)
    assert item["errorClass"] == "unknown"
    fixed = (
        await house.call(
            "POST", f"{FAILURES}/{item['messageId']}/fix", {"payload": {"sku": "bad", "stock": 4}, "reason": "typo"}
        )
    ).json()
    assert (fixed["status"], fixed["fixes"]) == ("PENDING", item["eventId"])
    await receiver.got("inventory.adjusted", "inventory.adjusted")
    event = receiver.accepted[1].event
    assert receiver.accepted[1].headers["webhook-id"] == event["id"] == fixed["eventId"]
    assert (event["fixes"], event["subject"], event["data"]) == (item["eventId"], "bad", {"sku": "bad", "stock": 4})
    original = await house.get(f"/api/admin/ops/outbox/events/{item['eventId']}")
    assert [each["fixedBy"] for each in original["messages"]] == [fixed["eventId"]]
    new = await house.get(f"/api/admin/ops/outbox/events/{fixed['eventId']}")
    assert (new["fixes"], new["payload"]) == (item["eventId"], {"sku": "bad", "stock": 4})


async def test_a_fix_that_cannot_be_meant_is_422_and_changes_nothing(quiet_house: House) -> None:
    await quiet_house.webhook("shop", "http://127.0.0.1:9/", enabled=False)
    await stage_failed(quiet_house, 1)
    [item] = (await quiet_house.get(FAILURES))["items"]
    path = f"{FAILURES}/{item['messageId']}/fix"
    bodies = [
        '{"payload": {"sku": "another"}, "reason": "x"}',
        '{"payload": {}, "reason": "x"}',
        '{"payload": [], "reason": "x"}',
        '{"payload": {"sku": "sku1"}}',
        '{"payload": {"sku": "sku1"}, "reason": "x", "colour": "green"}',
        '{"payload": {"sku": "sku1", "note": NaN}, "reason": "x"}',
        '{"payload": {"sku": "sku1", "note": 1e999}, "reason": "x"}',
        '{"payload": {"sku": "sku1", "note": 9999999999999999999999}, "reason": "x"}',
        '{"payload": {"sku": "sku1", "note": ["a\\u0000b"]}, "reason": "x"}',
        '{"payload": {"sku": "sku1", "\\ud800": 1}, "reason": "x"}',
        '{"payload": {"sku": "sku1", "note": ' + "[" * 40 + "]" * 40 + '}, "reason": "x"}',
        '{"payload": {"sku": "sku1", "note": "' + "x" * 70_000 + '"}, "reason": "x"}',
    ]
    headers = {"authorization": f"Bearer {TOKENS['admin']}", "content-type": "application/json"}
    for body in bodies:
        answer = await quiet_house.http.post(path, content=body, headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), body[:80]
    assert [each["messageId"] for each in (await quiet_house.get(FAILURES))["items"]] == [item["messageId"]]
    missing = await quiet_house.call("POST", f"{FAILURES}/1-1/fix", {"payload": {"sku": "x"}, "reason": "x"})
    assert missing.status_code == 404
