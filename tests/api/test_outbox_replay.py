"""Groups of failures and bulk operations over HTTP."""

from __future__ import annotations

from typing import Any

from tests.activities.lanes import stage_failed
from tests.houses import House
from tests.receivers import Receiver
from tests.waiting import eventually

FAILURES = "/api/admin/ops/outbox/failures"
REPLAYS = "/api/admin/ops/outbox/replays"


def asked(**more: Any) -> dict[str, Any]:
    return {"filter": {}, "action": "replay", "dryRun": False, "reason": "the shop is back", **more}


async def test_with_nobody_home_a_bulk_operation_can_be_tried_paused_and_read_but_not_started(
    quiet_house: House,
) -> None:
    house = quiet_house
    await house.webhook("shop", "http://127.0.0.1:9/", enabled=False)
    await stage_failed(house, 7)
    await stage_failed(house, 2, "other")
    refused = await house.call("POST", REPLAYS, asked())
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/no-worker")
    assert (await house.get(REPLAYS))["items"] == []

    tried = await house.call("POST", REPLAYS, asked(dryRun=True, filter={"errorClass": "event", "fingerprint": "sku"}))
    assert tried.status_code == 202
    answer = tried.json()
    assert (answer["status"], answer["count"], answer["done"], answer["dryRun"]) == ("DONE", 7, 0, True)
    assert answer["filter"] == {"errorClass": "event", "fingerprint": "sku"}
    assert [each["aggregateId"] for each in answer["sample"]] == [f"sku{number}" for number in range(1, 6)]
    path = f"{REPLAYS}/{answer['operationId']}"
    assert await house.get(path) == answer
    over = await house.call("POST", f"{path}/pause")
    assert (over.status_code, over.json()["operationStatus"]) == (409, "DONE")

    await house.sql("UPDATE outbox_replays SET status = 'RUNNING', dry_run = false, finished_at = NULL")
    for _ in range(2):
        paused = await house.call("POST", f"{path}/pause", {"reason": "too fast"})
        assert (paused.status_code, paused.json()["status"]) == (200, "PAUSED")
    assert (await house.call("POST", f"{path}/resume")).status_code == 503
    assert [each["status"] for each in (await house.get(REPLAYS))["items"]] == ["PAUSED"]
    actions = [each["action"] for each in (await house.get("/api/admin/ops/actions"))["items"]]
    assert actions[:2] == ["outbox.replays.pause", "outbox.replays"]
    for method, unknown in (("GET", f"{REPLAYS}/nope"), ("POST", f"{REPLAYS}/nope/pause")):
        assert (await house.call(method, unknown)).status_code == 404
    for wrong in (
        asked(filter={"colour": "green"}),
        asked(filter={"eventType": "waybill.order.teleported"}),
        asked(action="forget"),
        asked(dryRun="no"),
        {**asked(), "reason": None},
        {key: value for key, value in asked().items() if key != "filter"},
    ):
        response = await house.call("POST", REPLAYS, wrong)
        assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json"), wrong

    groups = (await house.get(f"{FAILURES}/groups?limit=1"))["items"]
    assert (await house.get(f"{FAILURES}/groups?status=RETRYING"))["items"] == []
    assert (groups[0]["fingerprint"], groups[0]["count"]) in (("sku", 7), ("other", 2))
    assert set(groups[0]) == {
        *("fingerprint", "eventType", "sink", "errorClass", "lastError", "count"),
        *("firstFailedAt", "lastFailedAt", "messageId"),
    }
    assert len((await house.get(f"{FAILURES}?fingerprint=other"))["items"]) == 2


async def test_a_bulk_replay_waits_for_its_endpoint_is_paused_resumed_and_done(
    house: House, receiver: Receiver
) -> None:
    await house.webhook("shop", receiver.url, enabled=False)
    frozen = await stage_failed(house, 30)
    begun = await house.call("POST", REPLAYS, asked())
    assert (begun.status_code, begun.json()["count"]) == (202, 30)
    path = f"{REPLAYS}/{begun.json()['operationId']}"
    workflow = house.temporal.get_workflow_handle(begun.json()["workflow"]["id"])

    async def waits() -> bool:
        metadata = await workflow.query("__temporal_workflow_metadata")
        return bool(metadata.current_details == "**RUNNING**: 0 of 30 messages, waits for shop")

    await eventually(waits)
    assert (await house.call("POST", f"{path}/pause")).json()["status"] == "PAUSED"
    await house.call("POST", "/api/admin/webhooks/shop/enable")
    assert (await house.get(path))["done"] == 0
    for _ in range(2):
        resumed = await house.call("POST", f"{path}/resume", {"reason": "quiet again"})
        assert resumed.status_code == 200
        assert resumed.json()["status"] in ("RUNNING", "DONE")

    async def arrived() -> bool:
        return {each.headers["webhook-id"] for each in receiver.accepted} == frozen

    await eventually(arrived)

    async def done() -> Any:
        operation = await house.get(path)
        return operation if operation["status"] == "DONE" else None

    operation = await eventually(done)
    assert (operation["count"], operation["done"], operation["skipped"]) == (30, 30, 0)
    assert (operation["actor"], operation["reason"]) == ("admin", "the shop is back")
    assert operation["finishedAt"] is not None
    assert (await workflow.result())["done"] == 30
    late = await house.call("POST", f"{path}/pause")
    assert (late.status_code, late.json()["type"]) == (409, "/problems/operation-over")
