"""Holds whose orders' workflows were terminated by hand, while the sweep that would end them is paused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from temporalio.client import ScheduleHandle, ScheduleState
from temporalio.service import RPCError

from domain.ops import pause_note
from local.drills.scene import REASON, Drill, Incident, Scene
from workflows.client import connect

_NAME = "drill-stuck"
_ORDERS = 3
_HOLD_SECONDS = 5
_HELD_SECONDS = 180.0
_RENEWED_SECONDS = 60.0
"""How long the sweep's pause lasts, renewed so often: so long it outlives a drill that is killed, and no longer."""
_LEFT_SECONDS = 3600.0
"""How long one lasts that a drill leaves there."""


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

    async with _paused(sweep, leave=scene.leaves_it):
        try:
            for _ in range(_ORDERS):
                order = await scene.order(_NAME, _NAME, _HOLD_SECONDS)
                order_ids.append(order["orderId"])
                await temporal.get_workflow_handle(order["workflow"]["id"]).terminate(REASON)

            await scene.until(decided, "the holds outlived their deadline")
            told = (
                f"The workflows of {_ORDERS} orders of product {_NAME} were terminated, and the schedule {sweep.id}, "
                "which would end their holds within a minute, was paused."
            )
            yield Incident(told, cleared)
        finally:
            if not scene.leaves_it:
                await scene.until(decided, "the holds' deadline passed")
                if not await cleared():
                    await scene.admin("POST", "/api/admin/ops/reservations/sweep", {"reason": REASON}, expect=(202,))
                    await scene.until(cleared, "the holds ended")
                await scene.empty_shelf(_NAME)


@asynccontextmanager
async def _paused(sweep: ScheduleHandle, *, leave: bool) -> AsyncIterator[None]:
    """Pause the sweep, unless somebody else has: theirs is not taken away in the end.

    The note says until when: the cross-check takes back what a drill left, or what one that was killed could not.
    """
    seconds = _LEFT_SECONDS if leave else _HELD_SECONDS
    state = (await sweep.describe()).schedule.state
    if not state.paused or _is_drills(state):
        await sweep.pause(note=_note(seconds))
    renewing = asyncio.create_task(_renew(sweep, seconds))
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.wait([renewing])
        if not leave and _is_drills((await sweep.describe()).schedule.state):
            await sweep.unpause(note=REASON)


async def _renew(sweep: ScheduleHandle, seconds: float) -> None:
    """Keep the pause up while the drill lives; one that was taken back meanwhile, as the runbook says, is over."""
    while True:
        await asyncio.sleep(_RENEWED_SECONDS)
        with contextlib.suppress(RPCError):
            if _is_drills((await sweep.describe()).schedule.state):
                await sweep.pause(note=_note(seconds))


def _is_drills(state: ScheduleState) -> bool:
    return state.paused and (state.note or "").startswith(REASON)


def _note(seconds: float) -> str:
    return pause_note(REASON, datetime.now(UTC) + timedelta(seconds=seconds))


DRILL = Drill(
    metric="ops_inventory_stuck_reservations",
    alert="WaybillReservationsStuck",
    section="Holds are stuck",
    stage=_stage,
)
