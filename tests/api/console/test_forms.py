"""What an admin does at the console is what the API does, and is written down with who and why."""

from __future__ import annotations

import pytest

from tests.api.console.desks import actions, failed, logged_in
from tests.houses import House


async def test_a_failed_message_is_replayed_and_another_ignored(quiet_house: House) -> None:
    await quiet_house.webhook("shop", "http://127.0.0.1:9/")
    for number in range(2):
        await quiet_house.product(f"sku-{number}", 5)
    first, _ = await failed(quiet_house)
    second, _ = await failed(quiet_house)
    async with logged_in(quiet_house) as desk:
        answer = await desk.post(f"/failures/{first}/replay", {"reason": "mended"})
        assert (answer.status_code, answer.headers["hx-trigger"]) == (200, "changed")
        assert "it is PENDING" in answer.text
        refused = await desk.post(f"/failures/{second}/ignore", {"reason": " "})
        assert (refused.status_code, "reason: Field required" in refused.text) == (422, True)
        assert (await desk.post(f"/failures/{second}/ignore", {"reason": "obsolete"})).status_code == 200
        again = await desk.post(f"/failures/{second}/replay")
        assert (again.status_code, "nothing to do" in again.text, 'role="alert"' in again.text) == (409, True, True)
        assert "No message is FAILED." in await desk.get("/failures")
    [replayed], [ignored] = await actions(quiet_house, "outbox.replay"), await actions(quiet_house, "outbox.ignore")
    assert (replayed["actor"], replayed["target"], replayed["reason"]) == ("admin", f"message:{first}", "mended")
    assert (ignored["actor"], ignored["target"], ignored["reason"]) == ("admin", f"message:{second}", "obsolete")


async def test_a_webhook_is_sent_to_again(quiet_house: House) -> None:
    await quiet_house.webhook("shop", "http://127.0.0.1:9/", enabled=False)
    async with logged_in(quiet_house) as desk:
        assert (await desk.post("/webhooks/shop/enable", {"reason": "they mended it"})).status_code == 200
        assert (await desk.post("/webhooks/nope/enable")).status_code == 404
    [action] = await actions(quiet_house, "webhook.enable")
    assert (action["reason"], action["after"]) == ("they mended it", {"enabled": True, "open": False})


async def test_knobs_are_changed_and_what_they_cannot_be_is_said(quiet_house: House) -> None:
    async with logged_in(quiet_house) as desk:
        knobs = {"batchWindowSeconds": "0.5", "parallelRounds": "3", "mode": "manual", "reason": "rush hour"}
        assert (await desk.post("/assignment/north/settings", knobs)).status_code == 200
        for wrong in ({"maxBatch": "0"}, {"maxBatch": "many"}, {"mode": "magic"}, {"other": "1"}):
            answer = await desk.post("/assignment/north/settings", wrong)
            assert (answer.status_code, 'role="alert"' in answer.text) == (422, True)
        assert (await desk.post("/assignment/nowhere/settings", knobs)).status_code == 404
    settings = await quiet_house.get("/api/admin/ops/assignment/settings/north")
    assert (settings["batchWindowSeconds"], settings["parallelRounds"], settings["mode"]) == (0.5, 3, "manual")
    assert [action["reason"] for action in await actions(quiet_house, "assignment.settings")] == ["rush hour"]


@pytest.mark.parametrize(
    "path", ["/cross-check", "/reservations/sweep", "/inventory/reconcile", "/assignment/north/run"]
)
async def test_what_needs_a_worker_says_so_and_starts_nothing(quiet_house: House, path: str) -> None:
    async with logged_in(quiet_house) as desk:
        answer = await desk.post(path, {"reason": "drill"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "No worker is alive, so nothing was started." in answer.text
    assert (await quiet_house.get("/api/admin/ops/actions"))["items"] == []


async def test_what_needs_a_worker_is_begun_where_there_is_one(house: House) -> None:
    begun = {
        "/cross-check": "cross_check",
        "/reservations/sweep": "reservations.sweep",
        "/assignment/north/run": "assignment.run",
    }
    async with logged_in(house) as desk:
        for path, action in begun.items():
            assert (await desk.post(path, {"reason": f"try {action}"})).status_code == 200
            assert [each["reason"] for each in await actions(house, action)] == [f"try {action}"]
        for path in ("/reservations/sweep", "/inventory/reconcile"):
            assert (await desk.post(path)).status_code == 422


async def test_only_a_finished_dry_run_that_found_something_can_be_applied(quiet_house: House) -> None:
    await quiet_house.sql(
        "INSERT INTO reconciliations (operation_id, dry_run, actor, reason, status) VALUES"
        " ('running', true, 'admin', 'x', 'RUNNING'), ('nothing', true, 'admin', 'x', 'DONE'),"
        " ('applied', false, 'admin', 'x', 'DONE')"
    )
    async with logged_in(quiet_house) as desk:
        for operation in ("running", "nothing", "applied"):
            answer = await desk.post(f"/inventory/reconcile/{operation}/apply", {"reason": "do it"})
            assert (answer.status_code, "Only a dry run" in answer.text) == (409, True)
            assert "Apply to" not in await desk.get(f"/inventory/reconcile/{operation}")


async def test_forms_work_without_scripts_too(quiet_house: House) -> None:
    await quiet_house.webhook("shop", "http://127.0.0.1:9/", enabled=False)
    async with logged_in(quiet_house) as desk:
        form = {"csrf": await desk.csrf()}
        done = await desk.http.post("/console/webhooks/shop/enable", data=form)
        assert (done.status_code, "<html" in done.text, "shop is sent to again." in done.text) == (200, True, True)
        wrong = await desk.http.post("/console/reservations/sweep", data=form)
        assert (wrong.status_code, "<html" in wrong.text, "Field required" in wrong.text) == (422, True, True)
