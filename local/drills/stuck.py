"""Holds whose orders' workflows were terminated by hand, while the sweep that would end them is paused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio.client import ScheduleHandle

from local.drills.scene import REASON, Drill, Incident, Scene
from workflows.client import connect

_NAME = "drill-stuck"
_ORDERS = 3
_HOLD_SECONDS = 5


@asynccontextmanager
async def _stage(scene: Scene) -> AsyncIterator[Incident]:
    await scene.stock(_NAME, 100)
    temporal = await connect(scene.stack.temporal_environment, embedded=scene.stack.temporal_embedded)
    sweep = temporal.get_schedule_handle(scene.stack.names.sweep_schedule)
    order_ids: list[str] = []

    async def cleared() -> bool:
        orders = [await scene.admin("GET", f"/api/orders/{order_id}") for order_id in order_ids]
        return all(order["status"] == "EXPIRED" for order in orders)

    async def stuck() -> bool:
        page = await scene.admin("GET", "/api/admin/ops/reservations/stuck?limit=200")
        return {item["orderId"] for item in page["items"]} >= set(order_ids)

    async def decided() -> bool:
        return await stuck() or await cleared()

    try:
        await _pause(sweep)
        for _ in range(_ORDERS):
            order = await scene.order(_NAME, _NAME, _HOLD_SECONDS)
            order_ids.append(order["orderId"])
            await temporal.get_workflow_handle(order["workflow"]["id"]).terminate(REASON)

        await scene.until(decided, "the holds outlived their deadline")
        told = (
            f"The workflows of {_ORDERS} orders of product {_NAME} were terminated, and the schedule {sweep.id}, which "
            "would end their holds within a minute, was paused."
        )
        yield Incident(told, cleared)
    finally:
        if not scene.leaves_it:
            await scene.until(decided, "the holds' deadline passed")
            if not await cleared():
                await scene.admin("POST", "/api/admin/ops/reservations/sweep", {"reason": REASON}, expect=(202,))
                await scene.until(cleared, "the holds ended")
            await _go_on(sweep)
            await scene.empty_shelf(_NAME)


async def _pause(sweep: ScheduleHandle) -> None:
    """Pause the sweep, unless somebody else has: theirs is not taken away in the end."""
    if not (await sweep.describe()).schedule.state.paused:
        await sweep.pause(note=REASON)


async def _go_on(sweep: ScheduleHandle) -> None:
    """Take back a drill's pause, also one that was left."""
    state = (await sweep.describe()).schedule.state
    if state.paused and state.note == REASON:
        await sweep.unpause(note=REASON)


DRILL = Drill(
    metric="ops_inventory_stuck_reservations",
    alert="WaybillReservationsStuck",
    section="Holds are stuck",
    stage=_stage,
)
