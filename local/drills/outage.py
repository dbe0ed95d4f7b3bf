"""A receiver that is down, and has moved elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from local.drills.receiver import receiving
from local.drills.scene import Drill, Incident, Scene
from local.ports import free_port

_NAME = "drill-outage"


@asynccontextmanager
async def _stage(scene: Scene) -> AsyncIterator[Incident]:
    await scene.without_webhook(_NAME)
    down = f"http://127.0.0.1:{free_port()}/events"
    async with receiving(lambda event: 204) as moved_to:
        await scene.webhook(_NAME, down)
        try:
            await scene.stock(_NAME, 1)

            async def breaker_is_open() -> bool:
                return bool((await _webhook(scene))["breaker"] == "open")

            await scene.until(breaker_is_open, f"the breaker of {_NAME} opened")

            async def cleared() -> bool:
                answer = await scene.api.call("admin", "GET", f"/api/admin/webhooks/{_NAME}", expect=(200, 404))
                return answer.status == 404 or answer.body["breaker"] == "closed"

            where = "" if scene.leaves_it else f" Its receiver has moved to {moved_to}."
            yield Incident(f"Webhook {_NAME} goes to {down}, where nothing listens.{where}", cleared)
        finally:
            if not scene.leaves_it:
                await scene.without_webhook(_NAME)
                await scene.empty_shelf(_NAME)


async def _webhook(scene: Scene) -> dict[str, str]:
    webhook: dict[str, str] = await scene.admin("GET", f"/api/admin/webhooks/{_NAME}")
    return webhook


DRILL = Drill(
    metric="ops_outbox_endpoint_open",
    alert="WaybillOutboxEndpointOpen",
    section="An endpoint is open or disabled",
    stage=_stage,
)
