"""Assignment at its real size: assigners that race and are killed, the runbook's mitigation, offers that expire.

`python -m soak.assignment --seed 1`, on throw-away servers.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from temporalio.client import Client

from db.migrations import migrate
from local.postgres import EmbeddedPostgres
from local.temporal import EmbeddedTemporal
from soak.deadline import Rush, rush
from soak.dispatch import Contest, Expiries, contest, expiries
from soak.race import Race, race
from tests.houses import House, open_house
from tests.servers import fresh_database, throw_away_postgres, throw_away_temporal
from worker import collect_garbage_seldom

HECTIC = {"parallelRounds": 8, "batchWindowSeconds": 0.05}
CALM = {"parallelRounds": 1, "batchWindowSeconds": 3}
RUNS = ("race", "mitigation", "offers", "deadline")


def print_race(run: Race) -> None:
    """What was seen of a race."""
    for title, counter in (("seen", run.seen), ("losers answered, each counted once", run.answered)):
        print(f"  {title}" + _table(counter))
    print(f"  {len(run.killed)} processes killed with -9; no delivery with two couriers, nobody over capacity")


def _table(counter: Counter[str]) -> str:
    return "".join(f"\n    {name:<43}{count:>8,}" for name, count in sorted(counter.items()))


def print_contests(hectic: Contest, calm: Contest) -> None:
    """What turning the knobs was good for."""
    for name, knobs, seen in (("before", HECTIC, hectic), ("after", CALM, calm)):
        print(
            f"  {name:<7} {knobs}: {seen.conflicts} conflicts over {seen.deliveries} deliveries,"
            f" {seen.conflicts_a_delivery:.3f} a delivery, {seen.seconds:.0f} s"
        )


def print_expiries(seen: Expiries) -> None:
    """How late deliveries were offered again."""
    print(
        f"  {seen.offers:,} offers: asked again after the deadline by p50 {seen.delay(0.5):.2f} s,"
        f" p99 {seen.delay(0.99):.2f} s, max {max(seen.delays):.2f} s; nobody asked twice\n"
        f"  accepts racing the deadline: {seen.accepted} won, {seen.late_accepts} lost and counted;"
        f" {seen.given_up} deliveries left to a person"
    )


def print_rush(name: str, seen: Rush) -> None:
    """How late offers that ended at one instant were made again."""
    print(
        f"  {name:<22} committed after the deadline by p50 {seen.delay(0.5):.2f} s, p99 {seen.delay(0.99):.2f} s,"
        f" max {max(seen.delays):.2f} s; event loop busy for {1000 * seen.busy_seconds:.0f} ms at most"
    )


async def _race(postgres: EmbeddedPostgres, seed: int, processes: int) -> None:
    print(f"Three assigners, {processes} processes each, 2,000 deliveries, 200 couriers, seed {seed}:")
    async with fresh_database(postgres, "soak-race") as url:
        await asyncio.to_thread(migrate, url, "soak")
        with tempfile.TemporaryDirectory() as logs:
            run = await race(url, Path(logs), deliveries=2_000, couriers=200, processes=processes, kills=9, seed=seed)
    assert run.answered.total() > 0
    print_race(run)


async def _mitigation(house: House, seed: int) -> None:
    print("\nThe runbook's mitigation of conflicts, through the API:")
    # The first one warms everything up: solver processes, workflow, connections.
    await contest(house, "warm", HECTIC, bursts=1, burst=20, seed=seed)
    hectic = await contest(house, "hectic", HECTIC, bursts=10, burst=50, seed=seed)
    calm = await contest(house, "calm", CALM, bursts=10, burst=50, seed=seed)
    print_contests(hectic, calm)
    assert calm.conflicts_a_delivery * 10 <= hectic.conflicts_a_delivery


async def _offers(house: House, seed: int) -> None:
    print("\n1,000 deliveries whose first offer expires:")
    seen = await expiries(house, deliveries=1_000, zones=5, a_second=50, window=3.0, seed=seed)
    print_expiries(seen)
    assert max(seen.delays) <= 1.0


async def _deadline(house: House, seed: int) -> None:
    print("\n1,000 offers of one zone that end at one instant, each then made to somebody else:")
    await rush(house, "warm", offers=50, seed=seed)
    for zone, name, knobs in (
        ("usual", "with the usual knobs", {}),
        ("large", "with maxBatch 1000", {"maxBatch": 1000}),
    ):
        seen = await rush(house, zone, offers=1_000, seed=seed, **knobs)
        print_rush(name, seen)
        assert max(seen.delays) <= 1.0


async def _in_a_house(postgres: EmbeddedPostgres, temporal: EmbeddedTemporal, runs: Sequence[str], seed: int) -> None:
    """The runs that need a whole one, which they share."""
    client = await Client.connect(temporal.address)
    async with fresh_database(postgres, "soak-dispatch") as url:
        await asyncio.to_thread(migrate, url, "soak")
        async with open_house(url, client, "soak") as house:
            for name, run in (("mitigation", _mitigation), ("offers", _offers), ("deadline", _deadline)):
                if name in runs:
                    await run(house, seed)


async def main() -> None:
    """Run as the command line says, and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m soak.assignment", description=__doc__)
    parser.add_argument("--processes", type=int, default=8, help="of each of the three assigners")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=RUNS, action="append", help="may be repeated")
    asked = parser.parse_args()
    runs = asked.only or RUNS
    collect_garbage_seldom()
    with throw_away_postgres() as postgres, throw_away_temporal() as temporal:
        if "race" in runs:
            await _race(postgres, asked.seed, asked.processes)
        if {*runs} - {"race"}:
            await _in_a_house(postgres, temporal, runs, asked.seed)


if __name__ == "__main__":
    asyncio.run(main())
