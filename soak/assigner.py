"""One of the racing assigners of `soak.assignment`: a process of its own, to be killed at any moment.

`python -m soak.assigner SOURCE DATABASE_URL SEED LOG`. What it is about to do and what it was answered goes to LOG, a
JSON value a line: an attempt without an answer was cut off by the kill.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from temporalio.testing import ActivityEnvironment

from activities.assignment import AssignmentActivities
from db.assignment import commit
from db.assignment.commit import Conflict
from db.engine import Database, create_engine
from domain.assignment.states import AssignmentSource
from tests.db.fleets import Fleet

ZONE = "north"
ROUTE_LENGTH = 3
_SEEN = 200


class Assigner:
    """A person at a desk, a route planner, or the rounds of a dispatch; it looks, thinks and tries, again and again."""

    def __init__(self, source: AssignmentSource, database: Database, seed: int, log: Path) -> None:
        self._source = source
        self._fleet = Fleet(database)
        self._chance = random.Random(seed)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def tell(self, value: Any) -> None:
        """Written at once: a kill takes nothing back."""
        os.write(self._log, json.dumps(value).encode() + b"\n")

    async def run(self, stop: asyncio.Event) -> None:
        """Try until told to stop."""
        if self._source is AssignmentSource.AUTO:
            await self._rounds(stop)
            return
        couriers: list[str] = []
        self.tell("ready")
        while not stop.is_set():
            couriers = couriers or [row[0] for row in await self._fleet.sql("SELECT courier_id FROM couriers")]
            rows = await self._fleet.sql(
                "SELECT delivery_id FROM deliveries WHERE status = 'PENDING' ORDER BY created_at LIMIT :n", n=_SEEN
            )
            if not rows:
                await asyncio.sleep(0.05)
                continue
            waiting = [row[0] for row in rows]
            await asyncio.sleep(self._chance.uniform(0, 0.3))  # thinks: what was seen is not what is
            await self._attempt(waiting, self._chance.choice(couriers))

    async def _attempt(self, waiting: list[str], courier: str) -> None:
        partial = False
        deliveries = [self._chance.choice(waiting)]
        if self._source is AssignmentSource.ROUTE:
            partial = self._chance.random() < 0.5
            deliveries = self._chance.sample(waiting, min(ROUTE_LENGTH, len(waiting)))
            if self._chance.random() < 0.2:
                deliveries.append(deliveries[0])
        lost = await self._try(deliveries, courier, partial=partial)
        if not lost and self._chance.random() < 0.2:
            await self._try(deliveries, courier, partial=partial)

    async def _try(self, deliveries: list[str], courier: str, *, partial: bool) -> list[Conflict]:
        pairs = [(delivery, courier) for delivery in deliveries]
        self.tell("begin")
        lost = await commit.attempt(
            self._fleet.database,
            pairs,
            self._source,
            lambda connection: commit.assign(connection, pairs, self._source, partial=partial),
        )
        counted = lost if partial else lost[:1]
        self.tell(Counter(str(each.kind) for each in counted))
        return lost

    async def _rounds(self, stop: asyncio.Event) -> None:
        """What each round lost is in its record."""
        activities = AssignmentActivities(self._fleet.database)
        self.tell("ready")
        while not stop.is_set():
            self.tell("begin")
            await ActivityEnvironment().run(activities.run_round, ZONE, True)
            self.tell({})
            await asyncio.sleep(0.05)
        activities.close()


async def _main(source: str, url: str, seed: str, log: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    database = Database(create_engine(url, pool_size=4, name=f"soak-{source}"))
    await Assigner(AssignmentSource(source), database, int(seed), Path(log)).run(stop)
    await database.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
