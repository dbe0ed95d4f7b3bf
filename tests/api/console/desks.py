"""An admin at the console: in a real browser by keyboard, or as plain HTTP; and rows for them to look at."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from playwright.async_api import Browser, Page, expect

from db import order as orders
from tests.db.shops import new_order
from tests.houses import TOKENS, House

# --- plain HTTP


@dataclass(frozen=True)
class Desk:
    """A logged-in session over plain HTTP."""

    http: httpx.AsyncClient

    async def get(self, path: str, *, status: int = 200) -> str:
        """A page's HTML."""
        answer = await self.http.get(f"/console{path}")
        assert answer.status_code == status, answer.text
        return answer.text

    async def csrf(self) -> str:
        """The token that this session's forms carry."""
        return str(re.findall(r'name="csrf" value="([0-9a-f]+)"', await self.get("/webhooks"))[0])

    async def post(self, path: str, fields: Mapping[str, str] | None = None, **headers: str) -> httpx.Response:
        """Post a form as its page would."""
        form = {"csrf": await self.csrf(), **(fields or {})}
        return await self.http.post(f"/console{path}", data=form, headers={"HX-Request": "true", **headers})


@asynccontextmanager
async def logged_in(house: House) -> AsyncIterator[Desk]:
    """A session with a cookie jar of its own."""
    async with httpx.AsyncClient(base_url=str(house.http.base_url), timeout=30) as http:
        answer = await http.post("/console/login", data={"token": TOKENS["admin"]})
        assert (answer.status_code, answer.headers["location"]) == (303, "/console")
        yield Desk(http)


# --- rows


async def reserved(house: House, order_id: str, sku: str = "tea") -> None:
    """A reserved order's rows, where no worker is there to make them."""
    work = partial(orders.reserve, order=new_order(order_id, {sku: 1}))
    await house.database.transact(work)


async def failed(house: House, error: str = "422: no such customer") -> tuple[str, str]:
    """Make the webhook's oldest ready message a failed one; answer its id and its event's."""
    ((position, endpoint_id, event_id),) = await house.sql(
        """
        WITH taken AS (
            DELETE FROM outbox_messages WHERE ctid = (SELECT m.ctid FROM outbox_messages m
                JOIN outbox_endpoints e USING (endpoint_id) WHERE e.kind = 'webhook' ORDER BY m.position LIMIT 1)
            RETURNING shard, endpoint_id, position, event_position, lane
        ), logged AS (
            INSERT INTO outbox_attempts (endpoint_id, position, event_position, outcome, error_class, error)
            SELECT endpoint_id, position, event_position, 'failed', 'event', :error FROM taken
        ), failed AS (
            INSERT INTO outbox_failures (endpoint_id, position, event_position, shard, lane, event_type, status,
                attempts, error_class, last_error, fingerprint)
            SELECT t.endpoint_id, t.position, t.event_position, t.shard, t.lane, e.event_type, 'FAILED', 3, 'event',
                :error, md5(:error)
            FROM taken t JOIN outbox_events e ON e.position = t.event_position
        )
        SELECT t.position, t.endpoint_id, CAST(e.event_id AS text)
        FROM taken t JOIN outbox_events e ON e.position = t.event_position
        """,
        error=error,
    )
    return f"{position}-{endpoint_id}", event_id


async def actions(house: House, action: str) -> list[dict[str, Any]]:
    """What the audit knows of one kind of action, newest first."""
    items = (await house.get("/api/admin/ops/actions"))["items"]
    return [each for each in items if each["action"] == action]


# --- a browser


@asynccontextmanager
async def seated(browser: Browser, house: House, **context: Any) -> AsyncIterator[Page]:
    """A browser page at the overview: logged in by keyboard."""
    opened = await browser.new_context(base_url=str(house.http.base_url), **context)
    try:
        page = await opened.new_page()
        page.set_default_timeout(10_000)
        await page.goto("/console")
        await page.keyboard.type(TOKENS["admin"])  # the field has the focus
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Overview").wait_for()
        yield page
    finally:
        await opened.close()


async def tab_to(page: Page, name: str, *, backwards: bool = False) -> None:
    """Press Tab until what has the focus is called `name`, as an accessibility tree would call it."""
    for _ in range(120):
        await page.keyboard.press("Shift+Tab" if backwards else "Tab")
        if await _focused(page) == name:
            return
    raise AssertionError(f"no way to {name!r} by keyboard")


async def follow(page: Page, name: str, heading: str) -> None:
    """Press what is called `name`, and wait for the page that it leads to."""
    await tab_to(page, name)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text(heading)


async def _focused(page: Page) -> str:
    """What the focused element is called: its label, or its text."""
    name: str = await page.evaluate("""() => {
        const held = document.activeElement;
        const label = held.getAttribute("aria-label") ?? held.labels?.[0]?.textContent ?? held.textContent;
        return label.replace(/\\s+/g, " ").trim();
    }""")
    return name
