"""Couriers: they come online in their zones, move about, and carry what they are given to its door."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from local.demo.client import Api, GaveUp, Unexpected

ZONES = {
    "demo-north": (52.56, 13.40),
    "demo-east": (52.51, 13.47),
    "demo-south": (52.46, 13.40),
    "demo-west": (52.51, 13.30),
}
"""Zones of the demo's own, so that nobody else's couriers and deliveries are mixed in, and where their middle is."""
_CAPACITY = 5
_SPREAD_DEGREES = 0.02
_STEP_DEGREES = 0.002
_LOOKS_PER_MOVE = 3
_ONLINE_AT_ONCE = 8


def place(zone: str, chance: random.Random) -> dict[str, float]:
    """A point somewhere in a zone."""
    lat, lng = ZONES[zone]
    return {
        "lat": round(chance.gauss(lat, _SPREAD_DEGREES), 5),
        "lng": round(chance.gauss(lng, _SPREAD_DEGREES), 5),
    }


@dataclass(frozen=True)
class Pace:
    """How fast a courier works, in seconds."""

    look: float = 1.0
    """Between two looks at what is to be done."""
    travel: float = 1.5
    """From the pick-up to the door, at least."""


class Fleet:
    """`couriers` of them in each zone."""

    def __init__(self, api: Api, couriers: int, pace: Pace, seed: int) -> None:
        self.surprises: list[str] = []
        self._api = api
        self._pace = pace
        self._chance = random.Random(seed)
        self._couriers = {f"{zone}-{number}": zone for zone in ZONES for number in range(1, couriers + 1)}
        self._places = {courier: place(zone, self._chance) for courier, zone in self._couriers.items()}

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Have all couriers online and at work while the block runs."""
        await self._everybody(online=True)
        tasks = [asyncio.create_task(self._work(courier)) for courier in self._couriers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(GaveUp, Unexpected):
                await self._everybody(online=False, patience_seconds=10)

    async def _everybody(self, *, online: bool, patience_seconds: float | None = None) -> None:
        turns = asyncio.Semaphore(_ONLINE_AT_ONCE)

        async def one(courier: str) -> None:
            async with turns:
                await self._put(courier, online=online, patience_seconds=patience_seconds)

        await asyncio.gather(*(one(courier) for courier in self._couriers))

    async def _put(self, courier: str, *, online: bool, patience_seconds: float | None = None) -> None:
        body = {
            "zone": self._couriers[courier],
            **self._places[courier],
            "capacity": _CAPACITY,
            "online": online,
        }
        await self._api.call(
            "courier",
            "PUT",
            f"/api/couriers/{courier}",
            body,
            expect=(200, 201),
            patience_seconds=patience_seconds,
        )

    async def _work(self, courier: str) -> None:
        """One courier's day. What goes wrong is remembered, and the day goes on."""
        on_board: dict[str, float] = {}
        looks = 0
        await asyncio.sleep(self._chance.uniform(0, self._pace.look))
        while True:
            try:
                await self._look(courier, on_board)
                looks += 1
                if looks % _LOOKS_PER_MOVE == 0:
                    self._step(courier)
                    await self._put(courier, online=True)
            except GaveUp:
                pass  # the stack is away for long: it is for the orders to say so
            except Unexpected as error:
                self.surprises.append(str(error))
            await asyncio.sleep(self._pace.look)

    def _step(self, courier: str) -> None:
        here = self._places[courier]
        for axis in here:
            here[axis] = round(here[axis] + self._chance.uniform(-_STEP_DEGREES, _STEP_DEGREES), 5)

    async def _look(self, courier: str, on_board: dict[str, float]) -> None:
        """Do what is next with each delivery in hand."""
        answer = await self._api.call("courier", "GET", f"/api/couriers/{courier}/deliveries?limit=200")
        for delivery in answer.body["items"]:
            delivery_id, status = delivery["deliveryId"], delivery["status"]
            if status == "OFFERED":
                await self._act(courier, delivery_id, "accept")
            elif status == "ASSIGNED":
                if await self._act(courier, delivery_id, "pickup"):
                    on_board[delivery_id] = time.monotonic()
            elif time.monotonic() - on_board.get(delivery_id, 0.0) >= self._pace.travel:
                await self._act(courier, delivery_id, "complete")
                on_board.pop(delivery_id, None)

    async def _act(self, courier: str, delivery_id: str, action: str) -> bool:
        """Whether it was done; not, where the customer cancelled meanwhile."""
        body: dict[str, Any] = {"courierId": courier}
        answer = await self._api.call(
            "courier", "POST", f"/api/deliveries/{delivery_id}/{action}", body, expect=(200, 409)
        )
        return answer.status == 200
