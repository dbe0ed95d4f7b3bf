"""The console in a real browser: by keyboard alone, in both themes, live, and fit for a screen reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Browser, Page, expect
from temporalio.client import Client

from tests.api.console.desks import actions, failed, follow, reserved, seated, tab_to
from tests.api.console.test_pages import fill
from tests.houses import TOKENS, House, open_house
from tests.receivers import Receiver

PAGES = (
    "",
    "/failures",
    "/failures/groups",
    "/events/{event}",
    "/replays",
    "/replays/op-2",
    "/reservations",
    "/inventory",
    "/inventory/reconcile/{operation}",
    "/assignment",
    "/assignment/north",
    "/rounds",
    "/rounds/r-1",
    "/attention",
    "/orders",
    "/orders/o-1",
    "/webhooks",
    "/snapshots",
    "/snapshots/s-2",
    "/actions",
    "/nothing",
)


async def test_by_keyboard_alone_drift_is_reconciled_a_knob_changed_and_an_order_found(
    browser: Browser, house: House
) -> None:
    await house.product("tea", 9)
    order_id = await house.reserved("k-1", {"tea": 2})
    await house.sql("UPDATE products SET reserved = 5")
    async with seated(browser, house) as page:
        await follow(page, "1 product drifted", "Inventory")
        await expect(page.get_by_role("status").first).to_contain_text("1 product drifted, by 3 units")
        await tab_to(page, "Reason")
        await page.keyboard.type("a drill")
        await follow(page, "Begin the dry run", "Dry run")
        await expect(page.get_by_role("status").first).to_contain_text("1 product would be corrected")
        assert await house.stock("tea") == (9, 5)
        await tab_to(page, "Reason")
        await page.keyboard.type("as the dry run said")
        await follow(page, "Apply to 1 product", "Reconciliation")
        await expect(page.get_by_role("status").first).to_contain_text("Corrected: 1 product")
        assert await house.stock("tea") == (9, 2)

        await follow(page, "Assignment", "Assignment")
        await follow(page, "north", "Zone north")
        await tab_to(page, "Rounds at once")
        await page.keyboard.type("3")
        await tab_to(page, "Save")
        await page.keyboard.press("Enter")
        await expect(page.locator("#said")).to_contain_text("The settings of north are saved")
        assert (await house.get("/api/admin/ops/assignment/settings/north"))["parallelRounds"] == 3
        assert len(await actions(house, "assignment.settings")) == 1
        await house.call("PATCH", "/api/admin/ops/assignment/settings/north", {"mode": "manual"})
        await page.evaluate("htmx.trigger(document.body, 'changed')")
        await expect(page.get_by_label("Mode")).to_have_value("manual")  # what nobody touched here is as it is

        await follow(page, "Orders", "Orders")
        await tab_to(page, "Order, delivery or workflow id, or Idempotency-Key")
        await page.keyboard.type("k-1")
        await follow(page, "Find", f"Order {order_id[:8]}")
        await expect(page.locator("#timeline")).to_contain_text("order reserved")

        await follow(page, "Snapshots", "Snapshots")
        await tab_to(page, "Reason (optional)")
        await page.keyboard.type("after the drill")
        await follow(page, "Take it", "Snapshot")
        await expect(page.get_by_role("status").first).to_contain_text("Every invariant held.")
        await tab_to(page, "Save all of it")
        async with page.expect_download() as saving:
            await page.keyboard.press("Enter")
        saved = _read(await (await saving.value).path())
        assert (saved["reason"], saved["drift"]["items"]) == ("after the drill", [])
        assert (await saving.value).suggested_filename == f"waybill-snapshot-{saved['snapshotId']}.json"
    reasons = {action["reason"] for action in await actions(house, "inventory.reconcile")}
    assert reasons == {"a drill", "as the dry run said"}


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


async def test_by_keyboard_alone_a_poisoned_event_is_fixed_and_replayed(
    browser: Browser, house: House, receiver: Receiver
) -> None:
    await house.webhook("shop", receiver.url, enabled=False)
    await house.product("tea", 9)
    message, event_id = await failed(house)
    await house.call("POST", "/api/admin/webhooks/shop/enable")
    async with seated(browser, house) as page:
        await follow(page, "1 message failed", "Failures")
        await follow(page, "inventory.adjusted", "Event inventory.adjusted")
        await tab_to(page, f"Fix the payload of message {message}")
        await page.keyboard.press("Enter")
        await tab_to(page, "Payload (JSON; it keeps the event's id only if no attempt can have arrived)")
        payload = await page.get_by_label("Payload (JSON").input_value()
        await page.keyboard.press("ControlOrMeta+A")
        await page.keyboard.insert_text('{"sku": "tea", ')
        await tab_to(page, "Reason to fix")
        await page.keyboard.type("they want a note")
        await page.keyboard.press("Enter")
        await expect(page.locator("#said")).to_contain_text("The payload is not valid JSON.")
        await tab_to(
            page, "Payload (JSON; it keeps the event's id only if no attempt can have arrived)", backwards=True
        )
        await page.keyboard.press("ControlOrMeta+A")
        await page.keyboard.insert_text(json.dumps({**json.loads(payload), "note": "fixed"}))
        await tab_to(page, "Send it fixed")
        await page.keyboard.press("Enter")
        await expect(page.locator("#said")).to_contain_text("will be sent with the new payload, under its own id")
        await expect(page.locator(f"#part-{message}")).to_contain_text("DELIVERED")
    [sent] = [each.event for each in receiver.accepted if each.event["id"] == event_id]
    assert sent["data"]["note"] == "fixed"
    [action] = await actions(house, "outbox.fix")
    assert (action["target"], action["reason"]) == (f"message:{message}", "they want a note")


async def test_news_come_without_a_reload_and_leave_alone_what_somebody_does(
    browser: Browser, quiet_house: House
) -> None:
    await quiet_house.product("tea", 9)
    await reserved(quiet_house, "o-1")
    await quiet_house.sql("UPDATE products SET reserved = 3")
    async with seated(browser, quiet_house) as page:
        await page.goto("/console/inventory")
        await page.evaluate("window.sameLoad = true")
        await tab_to(page, "1 holds of tea")
        await page.keyboard.press("Enter")
        await tab_to(page, "Reason")
        await page.keyboard.type("half a sen")
        await quiet_house.sql("UPDATE products SET reserved = 4")
        await expect(page.get_by_role("status").first).to_contain_text("by 3 units")
        await page.keyboard.type("tence")
        assert await page.locator("#holds-tea").get_attribute("open") is not None
        assert await page.get_by_label("Reason").input_value() == "half a sentence"
        await quiet_house.product("coffee", 9)
        await quiet_house.sql("UPDATE products SET reserved = 1 WHERE sku = 'coffee'")  # another row: the table is new
        await page.evaluate("htmx.trigger(document.body, 'changed')")  # as when an action was done: no need to wait
        await expect(page.get_by_role("row", name="coffee")).to_be_visible()
        await page.keyboard.type(", and more")
        assert await page.get_by_label("Reason").input_value() == "half a sentence, and more"
        assert await page.locator("#holds-tea").get_attribute("open") is not None
        assert await page.evaluate("window.sameLoad")


async def test_whoever_is_logged_out_meanwhile_stays_where_they_are_and_sends_what_they_typed_after_logging_in_again(
    browser: Browser, quiet_house: House
) -> None:
    await quiet_house.product("tea", 9)
    await reserved(quiet_house, "o-1")
    await quiet_house.sql("UPDATE reservations SET expires_at = now() - interval '1 hour'")
    async with seated(browser, quiet_house) as page:
        await page.goto("/console/reservations")
        await tab_to(page, "Temporal workflow of order o-1 (opens in a new tab) ↗")
        await quiet_house.sql("UPDATE reservations SET expires_at = expires_at - interval '1 hour'")
        await page.evaluate("htmx.trigger(document.body, 'changed')")
        await expect(page.get_by_role("row", name="o-1")).to_contain_text("2 h 00 min")
        assert await page.evaluate("document.activeElement.textContent.includes('workflow of order o-1')")

        await tab_to(page, "Reason")
        await page.keyboard.type("a drill")
        await page.context.clear_cookies()
        await page.keyboard.press("Enter")
        await expect(page.locator("#said")).to_contain_text("The session is over; nothing was done.")
        await page.evaluate("htmx.trigger(document.body, 'changed')")
        again = page.get_by_role("link", name="Log in again")
        assert await again.get_attribute("href") == "/console/login?next=%2Fconsole%2Freservations"
        async with page.context.expect_page() as opened:
            await again.click()
        login = await opened.value
        await login.get_by_label("Admin token").fill(TOKENS["admin"])
        await login.keyboard.press("Enter")
        await login.get_by_role("heading", name="Reservations").wait_for()
        await page.evaluate("htmx.trigger(document.body, 'changed')")
        await expect(page.locator("#fresh")).to_be_hidden()
        await page.get_by_label("Reason").press("Enter")
        await expect(page.locator("#said")).to_contain_text("No worker is alive")  # no longer forged, nor logged out
        assert await page.get_by_label("Reason").input_value() == "a drill"


async def test_a_replayed_message_leaves_the_list_at_once_and_the_outcome_is_read_out(
    browser: Browser, quiet_house: House
) -> None:
    await quiet_house.webhook("shop", "http://127.0.0.1:9/")
    await quiet_house.product("tea", 9)
    message, _ = await failed(quiet_house)
    async with seated(browser, quiet_house) as page:
        await expect(page.locator("#badge-failures")).to_contain_text("1 failed")
        await page.goto("/console/failures")
        await tab_to(page, f"Replay {message}")
        await page.keyboard.press("Enter")
        await expect(page.locator("#said[role=status]")).to_contain_text("it is PENDING")
        await expect(page.get_by_text("No message is FAILED.")).to_be_visible()
        await expect(page.locator("#badge-failures")).to_be_empty()
        await page.keyboard.press("Escape")
        await expect(page.locator("#said")).to_be_empty()


async def test_no_page_has_serious_findings_of_axe_in_either_theme_nor_breaks_its_own_policy(
    browser: Browser, database_url: str, client: Client, installation: str
) -> None:
    async with open_house(database_url, client, installation, worker=False) as house:
        event, operation = await fill(house)
        async with seated(browser, house, reduced_motion="reduce") as page:
            said: list[str] = []
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            for path in PAGES:
                await page.goto("/console" + path.format(event=event, operation=operation))
                await _find_nothing_in_either_theme(page)
                assert await _sticks_out(page) <= 0, path
            assert [line for line in said if "the server responded with a status of 404" not in line] == []
            await page.context.clear_cookies()
            await page.goto("/console")
            await _find_nothing_in_either_theme(page)


async def test_the_theme_is_the_systems_until_somebody_chooses_and_then_theirs_on_every_page(
    browser: Browser, quiet_house: House
) -> None:
    async with seated(browser, quiet_house, color_scheme="light", reduced_motion="reduce") as page:
        assert await _ground(page) > 200
        await page.emulate_media(color_scheme="dark")
        assert await _ground(page) < 60
        await tab_to(page, "Light theme")
        await page.keyboard.press("Enter")
        assert await _ground(page) > 200
        await page.goto("/console/orders")
        assert await _ground(page) > 200


async def _ground(page: Page) -> int:
    """How bright the page's background is."""
    bright: int = await page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    return bright


async def _find_nothing_in_either_theme(page: Page) -> None:
    """Wide and light, then narrow and dark: colours do not depend on the width, nor names and roles on either."""
    await page.set_viewport_size({"width": 1280, "height": 800})
    await page.emulate_media(color_scheme="light")
    await _no_serious_findings(page)
    await page.set_viewport_size({"width": 390, "height": 800})
    await page.emulate_media(color_scheme="dark")
    await _no_serious_findings(page, "color-contrast", "scrollable-region-focusable", "link-in-text-block")


async def _sticks_out(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    wider: int = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return wider


async def _no_serious_findings(page: Page, *rules: str) -> None:
    """Of every rule, or of those named."""
    chosen = {"runOnly": {"type": "rule", "values": list(rules)}} if rules else {}
    results = await Axe().run(page, options={"resultTypes": ["violations"], **chosen})
    serious = [
        (page.url, found["id"], [node["target"] for node in found["nodes"]])
        for found in results.response["violations"]
        if found["impact"] in ("serious", "critical")
    ]
    assert serious == []
