"""An event that its receiver refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from local.drills.receiver import receiving
from local.drills.scene import Drill, Incident, Scene

_NAME = "drill-poison"


def _refusal(event: dict[str, Any]) -> str | None:
    """Only the drill's own event is refused, and only as it is."""
    is_poison = event["subject"] == _NAME and event["data"].get("name") == _NAME
    return f"no product may be called {_NAME}" if is_poison else None


@asynccontextmanager
async def _stage(scene: Scene) -> AsyncIterator[Incident]:
    await scene.without_webhook(_NAME)
    async with receiving(_refusal) as url:
        await scene.webhook(_NAME, url)
        try:
            await scene.stock(_NAME, 1)
            failed: list[str] = []

            async def has_failed() -> bool:
                event_id = await scene.event_for(_NAME, _NAME)
                failed.extend([event_id] if event_id else [])
                return bool(failed)

            await scene.until(has_failed, f"an event FAILED at {_NAME}")
            told = (
                f"Webhook {_NAME} answers 400 to the event {failed[0]} of product {_NAME}, whose name it does not like "
                "(any other would do)."
            )

            async def cleared() -> bool:
                return not await scene.waits(_NAME, failed[0])

            yield Incident(told, cleared)
        finally:
            if scene.leaves_it:
                await scene.webhook(_NAME, url, enabled=False)  # its receiver goes with the drill
            else:
                await scene.without_webhook(_NAME)
                await scene.empty_shelf(_NAME)


DRILL = Drill(
    metric="ops_outbox_failed_events", alert="WaybillOutboxFailedEvents", section="Failed events", stage=_stage
)
