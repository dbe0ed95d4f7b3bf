"""Offers of one zone that all end at the same instant, in a whole house, for `soak.assignment`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from soak.dispatch import SETTINGS, share_within
from tests.db.fleets import Fleet
from tests.houses import House
from tests.waiting import eventually

_QUIET_SECONDS = 1.0
"""After the deadline nobody looks for so long: that would be a part of what is measured."""

_ONE_DEADLINE = """
    UPDATE deliveries SET offer_expires_at = instant.at
    FROM (SELECT clock_timestamp() + make_interval(secs => :seconds) AS at) instant
    WHERE zone = :zone AND status = 'OFFERED'
    RETURNING CAST(extract(epoch FROM instant.at) AS float8), CAST(:seconds AS float8)
"""
# A courier knows of an offer once it is committed; its timestamps are taken before.
_SECOND_OFFERS = """
    SELECT jsonb_path_query_array(d.timeline, '$[*].what'),
        CAST(extract(epoch FROM pg_xact_commit_timestamp(a.xmin)) AS float8),
        (SELECT count(DISTINCT asked.courier_id) FROM assignments asked WHERE asked.delivery_id = d.delivery_id)
    FROM deliveries d JOIN assignments a ON a.delivery_id = d.delivery_id AND a.live WHERE d.zone = :zone
"""


@dataclass(frozen=True)
class Rush:
    """How offers that ended at one instant were made again."""

    delays: list[float]
    """Seconds from the deadline to the commit of the delivery's next offer."""
    busy_seconds: float
    """The longest that the event loop of worker and API computed without a pause."""

    def delay(self, share: float) -> float:
        """The delay that so large a share of the offers stays within."""
        return share_within(self.delays, share)


async def rush(house: House, zone: str, *, offers: int, seed: int, **knobs: Any) -> Rush:
    """Make so many offers, let all of them end at one instant, and wait until each was made to somebody else."""
    fleet = Fleet(house.database, seed)
    answer = await house.call("PATCH", f"{SETTINGS}/{zone}", {"acceptWindowSeconds": 600, **knobs})
    assert answer.status_code == 200, answer.text
    window = answer.json()["batchWindowSeconds"]
    await fleet.couriers(-(-offers * 2 // 3), zone, capacity=3, prefix=f"{zone}-c")
    await fleet.deliveries(offers, zone, tell=True, prefix=f"{zone}-d")

    async def all_offered(times: int) -> bool:
        live = "SELECT count(*) FROM deliveries WHERE zone = :zone AND status = 'OFFERED' AND refusals = :refused"
        return await fleet.sql(live, zone=zone, refused=times - 1) == [(offers,)]

    await eventually(lambda: all_offered(1), 60)
    # The dispatch learns of it in a round of its own, and goes to sleep until then.
    rows = await fleet.sql(_ONE_DEADLINE, zone=zone, seconds=window + 1.0)
    deadline = rows[0][0]
    await house.call("POST", "/api/admin/ops/assignment/run", {"zone": zone})
    async with _event_loop_watched() as busy:
        await asyncio.sleep(deadline - time.time() + _QUIET_SECONDS)
    await eventually(lambda: all_offered(2), 60)
    second = await fleet.sql(_SECOND_OFFERS, zone=zone)
    assert [row for row in second if row[0] != ["offered", "expired", "offered"] or row[2] != 2] == []
    assert len(second) == offers
    await fleet.holds_together()
    return Rush([at - deadline for _, at, _ in second], max(busy))


@asynccontextmanager
async def _event_loop_watched() -> AsyncIterator[list[float]]:
    """How many seconds the loop computed between two looks: its own time alone, whoever else has the machine."""
    busy = [0.0]

    async def watch() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            busy.append(time.thread_time() - before)

    task = asyncio.create_task(watch())
    try:
        yield busy
    finally:
        task.cancel()
