"""A receiver that is down, and has moved elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from local.drills.receiver import receiving
from local.drills.scene import Drill, Incident, Scene
from local.ports import free_port

_NAME = "drill-outage"


@asynccontextmanager
async def _stage(scene: Scene) -> AsyncIterator[Incident]:
    await scene.without_webhook(_NAME)
    down = f"http://127.0.0.1:{free_port()}/events"
    arrived = False

    def take(event: dict[str, Any]) -> None:
        nonlocal arrived
        arrived = arrived or event["subject"] == _NAME

    async with receiving(take) as moved_to:
        await scene.webhook(_NAME, down)
        try:
            await scene.stock(_NAME, 1)

            async def breaker_is_open() -> bool:
                webhook = await scene.admin("GET", f"/api/admin/webhooks/{_NAME}")
                return bool(webhook["breaker"] == "open")

            await scene.until(breaker_is_open, f"the breaker of {_NAME} opened")

            async def cleared() -> bool:
                found = await scene.api.call("admin", "GET", f"/api/admin/webhooks/{_NAME}", expect=(200, 404))
                return found.status == 404 or (arrived and found.body["breaker"] == "closed")

            where = "" if scene.leaves_it else f" Its receiver has moved to {moved_to}."
            yield Incident(f"Webhook {_NAME} goes to {down}, where nothing listens.{where}", cleared)
        finally:
            if not scene.leaves_it:
                await scene.without_webhook(_NAME)
                await scene.empty_shelf(_NAME)


DRILL = Drill(
    metric="ops_outbox_endpoint_open",
    alert="WaybillOutboxEndpointOpen",
    section="An endpoint is open or disabled",
    stage=_stage,
)
