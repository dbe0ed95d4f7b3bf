"""What an admin does at the console is what the API does, and is written down with who and why."""

from __future__ import annotations

import re
from typing import Any

from tests.api.console.desks import actions, failed, logged_in
from tests.db.fleets import Fleet
from tests.houses import House
from tests.receivers import Receiver
from tests.waiting import eventually


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


async def test_a_fix_that_cannot_be_sent_changes_nothing(quiet_house: House) -> None:
    wrong = (
        ("{", "The payload is not valid JSON."),
        ("", "The payload is not valid JSON."),
        ("[" * 100_000, "The payload is not valid JSON."),
        ("[]", "payload: Input should be a valid dictionary"),
        ('{"sku": "coffee"}', "sku"),
    )
    await quiet_house.webhook("shop", "http://127.0.0.1:9/")
    await quiet_house.product("tea", 5)
    message, event_id = await failed(quiet_house)
    async with logged_in(quiet_house) as desk:
        for payload, problem in wrong:
            answer = await desk.post(f"/failures/{message}/fix", {"payload": payload, "reason": "try"})
            assert (answer.status_code, problem in answer.text) == (422, True), answer.text
        assert "FAILED" in await desk.get(f"/events/{event_id}")
    assert await actions(quiet_house, "outbox.fix") == []


async def test_a_group_is_counted_first_then_replayed_at_once(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url, enabled=False)
    for number in range(3):
        await house.product(f"sku-{number}", 5)
    for error in ("422: no customer", "422: no customer", "413: too large"):
        await failed(house, error)
    await house.call("POST", "/api/admin/webhooks/shop/enable")
    async with logged_in(house) as desk:
        groups = await desk.get("/failures/groups")
        [path] = re.findall(r'href="/console(/failures\?fingerprint=\w+)">2 messages<', groups)
        chosen = await desk.get(path)
        assert chosen.count("422: no customer</td>") == 2
        fingerprint = path.partition("=")[2]
        wish = {"action": "replay", "fingerprint": fingerprint, "reason": "they mended it"}
        counted = (await desk.post("/replays", wish)).headers["hx-redirect"].removeprefix("/console")
        assert "2 messages counted. Nothing was changed." in await desk.get(counted)
        assert (await desk.post(f"{counted}/begin")).status_code == 422
        begun = await desk.post(f"{counted}/begin", {"reason": "they mended it"})
        operation = begun.headers["hx-redirect"].removeprefix("/console")

        async def done() -> bool:
            return "2 of 2 messages done" in await desk.get(operation)

        await eventually(done)
        assert (await desk.post(f"{operation}/begin", {"reason": "again"})).status_code == 409
        over = await desk.post(f"{operation}/pause")
        assert (over.status_code, "nothing to do" in over.text) == (409, True)
        assert (await desk.post("/replays", {"action": "explode", "reason": "x"})).status_code == 422
    assert [each["reason"] for each in await actions(house, "outbox.replay")] == ["they mended it"] * 2


async def test_a_running_bulk_operation_is_paused(quiet_house: House) -> None:
    await quiet_house.sql(
        "INSERT INTO outbox_replays (operation_id, action, filter, dry_run, status, actor, reason, total)"
        " VALUES ('op', 'ignore', '{}', false, 'RUNNING', 'admin', 'x', 5)"
    )
    async with logged_in(quiet_house) as desk:
        assert (await desk.post("/replays/op/pause", {"reason": "too fast"})).status_code == 200
        assert "PAUSED" in await desk.get("/replays/op")
        assert (await desk.post("/replays/op/resume")).status_code == 503  # nobody would go on with it
        assert (await desk.post("/replays/nope/pause")).status_code == 404
    assert [each["reason"] for each in await actions(quiet_house, "outbox.replays.pause")] == ["too fast"]


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


async def test_what_needs_a_worker_says_so_and_starts_nothing(quiet_house: House) -> None:
    async with logged_in(quiet_house) as desk:
        for path in ("/cross-check", "/reservations/sweep", "/inventory/reconcile", "/assignment/north/run"):
            answer = await desk.post(path, {"reason": "drill"})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2"), path
            assert "No worker is alive, so nothing was started." in answer.text, path
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


async def test_a_form_changes_no_knob_that_somebody_else_turned_meanwhile(quiet_house: House) -> None:
    path = "/api/admin/ops/assignment/settings/north"
    await quiet_house.call("PATCH", path, {"batchWindowSeconds": 0.1234567})
    async with logged_in(quiet_house) as desk:
        page = await desk.get("/assignment/north")
        shown = dict(re.findall(r'name="(shown\.\w+)" value="([^"]*)"', page))
        knobs = {name.removeprefix("shown."): value for name, value in shown.items()}
        await quiet_house.call("PATCH", path, {"maxBatch": 7, "mode": "manual"})
        form = {**shown, **knobs, "maxOffers": "9", "reason": "patience"}
        assert (await desk.post("/assignment/north/settings", form)).status_code == 200
    settings = await quiet_house.get(path)
    assert (settings["maxBatch"], settings["mode"], settings["maxOffers"]) == (7, "manual", 9)
    assert settings["batchWindowSeconds"] == 0.1234567
    [newest, *_] = await actions(quiet_house, "assignment.settings")
    assert {name for name, value in newest["after"].items() if value != newest["before"][name]} == {"maxOffers"}


async def test_a_delivery_that_needs_a_person_waits_again_once_somebody_says_why(quiet_house: House) -> None:
    fleet = Fleet(quiet_house.database)
    given_up, carried = await fleet.deliveries(2)
    await quiet_house.sql(
        "UPDATE deliveries SET status = 'NEEDS_ATTENTION', attention = 'max_offers' WHERE delivery_id = :id",
        id=given_up,
    )
    await quiet_house.sql(
        "UPDATE deliveries SET status = 'PICKED_UP', attention = 'courier_offline', courier_id = 'ada'"
        " WHERE delivery_id = :id",
        id=carried,
    )
    async with logged_in(quiet_house) as desk:
        listed = await desk.get("/attention?zone=north")
        assert [f"/attention/{each}/requeue" in listed for each in (given_up, carried)] == [True, False]
        refused = await desk.post(f"/attention/{given_up}/requeue", {"reason": " "})
        assert (refused.status_code, "reason: Field required" in refused.text) == (422, True)
        done = await desk.post(f"/attention/{given_up}/requeue", {"reason": "eve comes on"})
        assert (done.status_code, done.headers["hx-trigger"], "is PENDING again" in done.text) == (200, "changed", True)
        taken = await desk.post(f"/attention/{carried}/requeue", {"reason": "why not"})
        assert (taken.status_code, "holder: ada" in taken.text) == (409, True)
        assert (await desk.post("/attention/nope/requeue", {"reason": "x"})).status_code == 404
        assert given_up not in await desk.get("/attention")
    [action] = [each for each in await _all_actions(quiet_house) if "requeue" in each["action"]]
    assert (action["actor"], action["reason"]) == ("admin", "eve comes on")


async def _all_actions(house: House) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await house.get("/api/admin/ops/actions"))["items"]
    return items


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
