"""A dispatcher who assigns by hand what rounds, which wait for nobody, have given away already."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from local.demo.client import GaveUp, Unexpected
from local.drills.scene import REASON, Drill, Incident, Scene

_NAME = "drill-conflicts"
_SETTINGS = f"/api/admin/ops/assignment/settings/{_NAME}"
_RACING = {"parallelRounds": 8, "batchWindowSeconds": 0, "mode": "auto"}
_AS_USUAL = {"parallelRounds": 1, "batchWindowSeconds": 2}
_COURIERS = 8
_CAPACITY = 10
_PAUSE_SECONDS = 0.2
_HOLD_SECONDS = 60
_HESITATION_SECONDS = 1.5
"""Between the dispatcher's look at a delivery and what they do about it."""
_ATTEMPTS = 20
_LOST_AT_MOST = 5
"""Of the last so many attempts, when it counts as over."""


class _Dispatcher:
    """Assigns deliveries by hand, each a moment after it was asked for; its orders are cancelled at once."""

    def __init__(self, scene: Scene) -> None:
        self.lost: deque[bool] = deque(maxlen=_ATTEMPTS)
        self._scene = scene
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Work until the block ends; then finish what was begun."""
        working = asyncio.create_task(self._work())
        try:
            yield
        finally:
            self._stop.set()
            await working

    async def _work(self) -> None:
        attempts: set[asyncio.Task[None]] = set()
        number = 0
        while not self._stop.is_set():
            attempt = asyncio.create_task(self._one(number % _COURIERS))
            attempts.add(attempt)
            attempt.add_done_callback(attempts.discard)
            number += 1
            await asyncio.sleep(_PAUSE_SECONDS)
        await asyncio.gather(*attempts)

    async def _one(self, courier: int) -> None:
        """An attempt that the stack does not let happen is none; its order's hold ends by itself."""
        with contextlib.suppress(GaveUp, Unexpected):
            order_id = (await self._scene.order(_NAME, _NAME, _HOLD_SECONDS))["orderId"]
            delivery_id = await self._client(order_id, "confirm")
            await asyncio.sleep(_HESITATION_SECONDS)
            body = {"deliveryId": delivery_id, "courierId": _courier(courier), "reason": REASON}
            answer = await self._scene.api.call("admin", "POST", "/api/admin/assignments", body, expect=(200, 409))
            self.lost.append(answer.status == 409)
            await self._client(order_id, "cancel")

    async def _client(self, order_id: str, does: str) -> str:
        answer = await self._scene.api.call("client", "POST", f"/api/orders/{order_id}/{does}")
        return str(answer.body["deliveryId"])


def _courier(number: int) -> str:
    return f"drill-courier-{number + 1}"


@asynccontextmanager
async def _stage(scene: Scene) -> AsyncIterator[Incident]:
    await scene.stock(_NAME, 1000)
    dispatcher = _Dispatcher(scene)
    try:
        await _couriers(scene, online=True)
        await scene.admin("PATCH", _SETTINGS, {**_RACING, "reason": REASON})
        async with dispatcher.working():

            async def racing() -> bool:
                return len(dispatcher.lost) == _ATTEMPTS and sum(dispatcher.lost) > _ATTEMPTS / 2

            await scene.until(racing, "the dispatcher lost most attempts")

            async def cleared() -> bool:
                return sum(dispatcher.lost) <= _LOST_AT_MOST

            told = (
                f"In zone {_NAME} a dispatcher assigns by hand what 8 rounds at once, without a batch window, have "
                f"given away: {sum(dispatcher.lost)} of the last {_ATTEMPTS} attempts lost."
            )
            yield Incident(told, cleared)
    finally:  # there are no conflicts without the dispatcher, so nothing can be left
        await _couriers(scene, online=False)
        await scene.admin("PATCH", _SETTINGS, {**_AS_USUAL, "reason": REASON})
        await scene.empty_shelf(_NAME)


async def _couriers(scene: Scene, *, online: bool) -> None:
    place: dict[str, Any] = {"zone": _NAME, "lat": 52.52, "lng": 13.40, "capacity": _CAPACITY, "online": online}
    for number in range(_COURIERS):
        path = f"/api/couriers/{_courier(number)}"
        await scene.api.call("courier", "PUT", path, place, expect=(200, 201))


DRILL = Drill(
    metric="ops_assignment_conflicts_total",
    alert="WaybillAssignmentConflicts",
    section="Assignment conflicts spike",
    stage=_stage,
)
