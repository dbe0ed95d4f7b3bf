"""What drills share: the stack they are staged on, and what an incident is."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from local.demo.client import Api, GaveUp
from local.running import RunningStack

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
REASON = "drill"


@dataclass(frozen=True)
class Incident:
    """What has been staged."""

    told: str
    """What was done, as a sentence."""
    cleared: Callable[[], Awaitable[bool]]
    """Whether it is over; of what else goes on in the stack it knows nothing."""


@dataclass(frozen=True)
class Drill:
    """An incident that can be staged. Its rows are its own: their names begin with `drill-`."""

    metric: str
    """The sample that shows it, as the metrics endpoint writes it without labels; several are added up."""
    alert: str
    section: str
    """The title of its section in RUNBOOK.md."""
    stage: Callable[[Scene], AbstractAsyncContextManager[Incident]]
    """Entered: the incident is there. Left: what belongs to the drill is taken away, unless `scene.leaves_it`."""


@dataclass(frozen=True)
class Scene:
    """The running stack. `leaves_it`: the incident is to stay when the drill has gone."""

    api: Api
    stack: RunningStack
    leaves_it: bool

    async def admin(self, method: str, path: str, body: Any = None, *, expect: tuple[int, ...] = (200,)) -> Any:
        """What an admin's call answers. Raises GaveUp and Unexpected."""
        return (await self.api.call("admin", method, path, body, expect=expect)).body

    async def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = str(await self.admin("GET", "/api/admin/ops/metrics")).splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return sum(float(value) for sample, value in samples if sample.partition("{")[0] == name)

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait for what the drill has caused. Raises GaveUp."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not await condition():
            if time.monotonic() > deadline:
                raise GaveUp(f"{what}: not after {PATIENCE_SECONDS:.0f} s")
            await asyncio.sleep(LOOK_SECONDS)

    async def stock(self, sku: str, units: int) -> None:
        """Put so many units of a drill's product on the shelf; where they are there, one more: it is always news."""
        answer = await self.api.call("admin", "GET", f"/api/products/{sku}", expect=(200, 404))
        if answer.status == 200 and answer.body["stock"] >= units:
            units = answer.body["stock"] + 1
        body = {"name": sku, "stock": units, "reason": REASON}
        await self.admin("PUT", f"/api/admin/products/{sku}", body, expect=(200, 201))

    async def empty_shelf(self, sku: str) -> None:
        """Sell no more of a drill's product; there is no other way to take one away."""
        body = {"name": sku, "stock": 0, "reason": REASON}
        await self.admin("PUT", f"/api/admin/products/{sku}", body, expect=(200, 201, 409))

    async def order(self, sku: str, zone: str, hold_seconds: int) -> dict[str, Any]:
        """Have a unit of a drill's product reserved; answer the order."""
        body = {
            "customerId": "drill",
            "zone": zone,
            "lines": [{"sku": sku, "quantity": 1}],
            "dropoff": {"lat": 52.52, "lng": 13.40},
            "holdSeconds": hold_seconds,
        }
        key = f"drill-{secrets.token_hex(8)}"
        answer = await self.api.call("client", "POST", "/api/orders", body, expect=(200, 201), key=key)
        order: dict[str, Any] = answer.body
        return order

    async def webhook(self, name: str, url: str, *, enabled: bool = True) -> None:
        """Make or change a drill's webhook. It gets stock adjustments only, and no order waits behind them."""
        body = {"url": url, "eventTypes": ["waybill.inventory.adjusted"], "enabled": enabled, "reason": REASON}
        await self.admin("PUT", f"/api/admin/webhooks/{name}", body, expect=(200, 201))

    async def webhooks_of_others(self) -> list[str]:
        """The names of webhooks that are no drill's: what drills do sends them events as well."""
        page = await self.admin("GET", "/api/admin/webhooks?limit=200")
        return sorted(
            each["name"] for each in page["items"] if each["enabled"] and not each["name"].startswith("drill-")
        )

    async def without_webhook(self, name: str) -> None:
        """Take a drill's webhook away, with what waits for it."""
        await self.admin("DELETE", f"/api/admin/webhooks/{name}?reason={REASON}", expect=(204, 404))

    async def event_for(self, webhook: str, sku: str) -> str | None:
        """The id of a product's event that failed at a webhook."""
        page = await self.admin("GET", f"/api/admin/ops/outbox/failures?sink={webhook}")
        return next((str(item["eventId"]) for item in page["items"] if item["aggregateId"] == sku), None)

    async def waits(self, webhook: str, event_id: str) -> bool:
        """Whether an event is not delivered to a webhook yet, nor given up."""
        event = await self.admin("GET", f"/api/admin/ops/outbox/events/{event_id}")
        return any(
            each["sink"] == webhook and each["status"] in ("PENDING", "RETRYING", "FAILED")
            for each in event["messages"]
        )
