"""The race of `soak.assignment`: three kinds of assigners, many processes each, over the same deliveries and couriers.

Some are killed with -9 in the middle and replaced. At any moment no delivery has two live assignments and no courier
more than they can carry; at the end every answered loser was counted once, by source and kind.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from db.engine import Database, create_engine
from domain.assignment.states import AssignmentSource
from soak.assigner import ROUTE_LENGTH
from tests.db.fleets import Fleet
from tests.waiting import eventually

_ROOT = Path(__file__).parent.parent
_SOURCES = (AssignmentSource.MANUAL, AssignmentSource.ROUTE, AssignmentSource.AUTO)
_BATCH = 20


@dataclass
class Race:
    """One race, and what was seen of it."""

    fleet: Fleet
    url: str
    logs: Path
    chance: random.Random
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    killed: list[str] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    cut_off: Counter[str] = field(default_factory=Counter)

    async def run(self, *, deliveries: int, couriers: int, processes: int, kills: int) -> None:
        """Race until every delivery has a courier; assert everything."""
        # A few slots more than deliveries: towards the end nearly everybody is full.
        await self.fleet.couriers(couriers, capacity=-(-deliveries * 11 // (couriers * 10)))
        await self.fleet.knobs(max_batch=_BATCH)
        try:
            for number in range(processes):
                for source in _SOURCES:
                    self._start(source, number)
            await eventually(self._all_ready, 120)
            await self.fleet.deliveries(deliveries)
            chaos = asyncio.create_task(self._kill_some(kills))
            await eventually(self._over, 600)
            await chaos
        finally:
            await self._stop()
        await self._account()

    def _start(self, source: AssignmentSource, number: int) -> None:
        name = f"{source}-{number}-{len(self.killed)}"
        command = [
            sys.executable,
            "-m",
            "soak.assigner",
            source,
            self.url,
            str(self.chance.random())[2:],
            self._log(name),
        ]
        with Path(self._log(name) + ".errors").open("wb") as errors:
            self.processes[name] = subprocess.Popen(command, cwd=_ROOT, stderr=errors)

    def _log(self, name: str) -> str:
        return str(self.logs / f"{name}.log")

    def _lines(self, name: str) -> list[object]:
        log = Path(self._log(name))
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    async def _all_ready(self) -> bool:
        await asyncio.sleep(0.2)
        return all(self._lines(name) for name in self.processes)

    async def _over(self) -> bool:
        """Look at the promises, and whether all is done."""
        await self.fleet.holds_together()
        self.seen["looks at the promises"] += 1
        await asyncio.sleep(0.1)
        [(open_deliveries,)] = await self.fleet.sql("SELECT count(*) FROM deliveries WHERE status <> 'ASSIGNED'")
        return bool(open_deliveries == 0)

    async def _kill_some(self, kills: int) -> None:
        """One of each kind in turn, while they are at it, and a new one in its place."""
        for number in range(kills):
            await asyncio.sleep(self.chance.uniform(0.1, 0.5))
            source = _SOURCES[number % len(_SOURCES)]
            alive = [name for name in self.processes if name.startswith(source) and name not in self.killed]
            name = self.chance.choice(alive)
            self.processes[name].send_signal(signal.SIGKILL)
            self.killed.append(name)
            self._start(source, number)

    async def _stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for name, process in self.processes.items():
            code = await asyncio.to_thread(process.wait, 60)
            assert code == (-signal.SIGKILL if name in self.killed else 0) or code == -signal.SIGTERM, (name, code)

    async def _account(self) -> None:
        """Hold what the assigners were answered against what was counted."""
        await self.fleet.holds_together()
        for name in self.processes:
            source = name.split("-")[0]
            lines = self._lines(name)
            self.seen[f"{source} attempts"] += lines.count("begin")
            self.cut_off[source] += lines.count("begin") - sum(isinstance(line, dict) for line in lines)
            for line in lines:
                if isinstance(line, dict):
                    self.answered.update({f"{source} {kind}": number for kind, number in line.items()})
        rounds = await self.fleet.sql("""
            SELECT loser ->> 'kind', CAST(count(*) AS integer)
            FROM assignment_rounds, jsonb_array_elements(losers) AS losers(loser) GROUP BY 1
        """)
        self.answered.update({f"auto {kind}": number for kind, number in rounds})
        # A kill may fall between the count and the answer: so many losers may be counted that nobody was told of.
        losers = {"auto": _BATCH, "manual": 1, "route": ROUTE_LENGTH}
        most_cut_off = Counter({source: number * losers[source] for source, number in self.cut_off.items()})
        counted = await self.fleet.conflicts()
        untold: Counter[str] = Counter()
        for key in {*counted, *self.answered}:
            difference = counted.get(key, 0) - self.answered[key]
            assert difference >= 0, f"{key}: {self.answered[key]} answered, {counted.get(key, 0)} counted"
            untold[key.split()[0]] += difference
        for source, number in untold.items():
            assert number <= most_cut_off[source], f"{source}: {number} counted that nobody was answered"
        assert sum(self.cut_off.values()) <= len(self.killed)
        self.seen["counted, the answer cut off by a kill"] = sum(untold.values())


async def race(url: str, logs: Path, *, deliveries: int, couriers: int, processes: int, kills: int, seed: int) -> Race:
    """Run a race on a migrated, empty database."""
    database = Database(create_engine(url, pool_size=4, name="soak"))
    try:
        run = Race(Fleet(database, seed), url, logs, random.Random(seed))
        await run.run(deliveries=deliveries, couriers=couriers, processes=processes, kills=kills)
        run.seen["attempts counted apart"] = sum((await run.fleet.apart()).values())
        return run
    finally:
        await database.close()
