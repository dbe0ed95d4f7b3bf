"""Two stories of a dispatch at work in a whole house, for `soak.assignment`: too many rounds at once, and offers."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from domain.assignment.states import CourierAction
from tests.db.fleets import Fleet
from tests.houses import House
from tests.waiting import eventually

SETTINGS = "/api/admin/ops/assignment/settings"
_ASSIGNMENTS = "/api/admin/assignments"
_CONFLICTS = "ops_assignment_conflicts_total"


# --- the runbook's mitigation of conflicts


@dataclass(frozen=True)
class Contest:
    """What happened under one setting of the knobs."""

    deliveries: int
    conflicts: int
    seconds: float

    @property
    def conflicts_a_delivery(self) -> float:
        """By the metric."""
        return self.conflicts / self.deliveries


async def _conflicts(house: House) -> int:
    """What the metric says, over all sources and kinds."""
    text = (await house.call("GET", "/api/admin/ops/metrics")).text
    return round(sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(_CONFLICTS + "{")))


async def contest(house: House, name: str, knobs: dict[str, Any], *, bursts: int, burst: int, seed: int) -> Contest:
    """Deliveries and couriers come in bursts, hardly more couriers than deliveries; rounds and two people compete.

    The knobs are turned through the API before it, on a dispatch that runs.
    """
    answer = await house.call("PATCH", f"{SETTINGS}/north", {**knobs, "reason": "runbook: conflicts"})
    assert answer.status_code == 200, answer.text
    fleet = Fleet(house.database, seed)
    before, began = await _conflicts(house), time.monotonic()
    people = [asyncio.create_task(_person(house, fleet, random.Random(seed + each))) for each in range(2)]
    try:
        for number in range(bursts):
            await fleet.couriers(burst + 2, capacity=1, prefix=f"{name}-c{number}")
            await fleet.deliveries(burst, tell=True, prefix=f"{name}-d{number}")
            await asyncio.sleep(0.5)

        async def all_assigned() -> bool:
            return await fleet.sql("SELECT 1 FROM deliveries WHERE status = 'PENDING' LIMIT 1") == []

        await eventually(all_assigned, 120)
    finally:
        for person in people:
            person.cancel()
        await asyncio.gather(*people, return_exceptions=True)
    seconds = time.monotonic() - began
    await fleet.holds_together()
    # Whoever was left free goes home: the next contest begins with its own couriers.
    await fleet.sql("UPDATE couriers SET online = false WHERE load = 0")
    return Contest(bursts * burst, await _conflicts(house) - before, seconds)


async def _person(house: House, fleet: Fleet, chance: random.Random) -> None:
    """Looks at what waits and who is free, thinks for a moment, and assigns."""
    while True:
        waiting = await fleet.sql("SELECT delivery_id FROM deliveries WHERE status = 'PENDING' LIMIT 50")
        free = await fleet.sql("SELECT courier_id FROM couriers WHERE online AND load < capacity LIMIT 50")
        await asyncio.sleep(chance.uniform(0.3, 0.6))
        if waiting and free:
            (delivery_id,), (courier_id,) = chance.choice(waiting), chance.choice(free)
            await house.call("POST", _ASSIGNMENTS, {"deliveryId": delivery_id, "courierId": courier_id})


# --- offers that nobody takes in time


@dataclass(frozen=True)
class Expiries:
    """How offers ended."""

    offers: int
    delays: list[float]
    """Seconds from an offer's deadline to the delivery's next one."""
    accepted: int
    late_accepts: int
    given_up: int

    def delay(self, share: float) -> float:
        """The delay that so large a share of the offers stays within."""
        return share_within(self.delays, share)


def share_within(delays: list[float], share: float) -> float:
    """The delay that so large a share of them stays within."""
    return sorted(delays)[min(int(share * len(delays)), len(delays) - 1)]


async def expiries(house: House, *, deliveries: int, zones: int, a_second: int, window: float, seed: int) -> Expiries:
    """So many deliveries are each offered, not accepted, and offered to somebody else, over several zones.

    Of the second offers one in five is accepted just around its deadline.
    """
    fleet, chance = Fleet(house.database, seed), random.Random(seed)
    names = [f"zone-{number}" for number in range(zones)]
    for zone in names:
        knobs = {"acceptWindowSeconds": window, "maxOffers": 2, "batchWindowSeconds": 0.1}
        answer = await house.call("PATCH", f"{SETTINGS}/{zone}", knobs)
        assert answer.status_code == 200, answer.text
        await fleet.couriers(60, zone, capacity=3, prefix=f"{zone}-c")
    late_before = (await fleet.conflicts()).get("courier late_accept", 0)
    rushing = asyncio.create_task(_accept_around_the_deadline(fleet, chance, window))
    for second in range(-(-deliveries // a_second)):
        number = min(a_second, deliveries - second * a_second)
        for zone, share in Counter(chance.choices(names, k=number)).items():
            await fleet.deliveries(share, zone, tell=True, prefix=f"{zone}-d{second}")
        await asyncio.sleep(1)

    async def over() -> bool:
        return (
            await fleet.sql(
                "SELECT 1 FROM deliveries WHERE status IN ('PENDING', 'OFFERED') AND zone <> 'north' LIMIT 1"
            )
            == []
        )

    await eventually(over, 120)
    rushing.cancel()
    [lost] = await asyncio.gather(rushing, return_exceptions=True)
    assert isinstance(lost, asyncio.CancelledError), lost
    await fleet.holds_together()
    late = (await fleet.conflicts()).get("courier late_accept", 0) - late_before
    return await _tell(fleet, deliveries, window, late)


async def _accept_around_the_deadline(fleet: Fleet, chance: random.Random, window: float) -> None:
    """Couriers who make up their minds in the last moment, or a little after it."""
    tried: set[str] = set()

    async def accept(delivery_id: str, courier_id: str, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds + chance.uniform(-0.05, 0.05)))
        await fleet.act(delivery_id, courier_id, CourierAction.ACCEPT)

    async with asyncio.TaskGroup() as group:
        while True:
            rows = await fleet.sql("""
                SELECT delivery_id, courier_id,
                    CAST(extract(epoch FROM offer_expires_at - clock_timestamp()) AS float8) AS seconds
                FROM deliveries WHERE status = 'OFFERED' AND refusals = 1
            """)
            for delivery_id, courier_id, seconds in rows:
                if delivery_id not in tried and chance.random() < 0.2:
                    group.create_task(accept(delivery_id, courier_id, seconds))
                tried.add(delivery_id)
            await asyncio.sleep(window / 4)


async def _tell(fleet: Fleet, deliveries: int, window: float, late_accepts: int) -> Expiries:
    """Assert that each delivery's story is one of the two that can be, and measure its delays."""
    rows = await fleet.sql("""
        SELECT d.status, d.timeline, (SELECT count(DISTINCT a.courier_id) FROM assignments a
            WHERE a.delivery_id = d.delivery_id) AS couriers
        FROM deliveries d WHERE d.zone <> 'north'
    """)
    assert len(rows) == deliveries
    delays, statuses = [], Counter[str]()
    for status, timeline, couriers in rows:
        told = [entry["what"] for entry in timeline]
        ends = {"ASSIGNED": ["accepted"], "NEEDS_ATTENTION": ["expired", "needs_attention"]}
        assert told == ["offered", "expired", "offered", *ends[status]], told
        assert couriers == 2
        first, _, second = (datetime.fromisoformat(entry["at"]) for entry in timeline[:3])
        delays.append((second - first).total_seconds() - window)
        statuses[status] += 1
    return Expiries(2 * deliveries, delays, statuses["ASSIGNED"], late_accepts, statuses["NEEDS_ATTENTION"])
