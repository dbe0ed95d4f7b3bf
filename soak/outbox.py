"""The outbox under faults: receivers that fail, poisoned messages, dead endpoints, relays killed and frozen.

`python -m soak.outbox --seed 1`; `--only faults --only replay` for a part of it; `--events 1000` for less. On
throw-away servers, with worker processes to kill and receivers over real HTTP. Ends with 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from temporalio.client import Client

from db.migrations import migrate
from local.postgres import EmbeddedPostgres
from local.temporal import EmbeddedTemporal
from soak.outbox_down import DownRun
from soak.outbox_faults import FaultRun
from soak.outbox_poison import PoisonRun
from soak.outbox_relays import FreezeRun, history_run, kill_and_wait
from soak.outbox_replay import replay_run
from soak.outbox_stage import Promises, Stage, open_stage
from tests.servers import fresh_database, throw_away_directory, throw_away_postgres, throw_away_temporal

Run = Callable[[Stage, int, int], Awaitable[None]]
"""On a stage of its own, with so many events and that seed."""


async def _faults(stage: Stage, events: int, seed: int) -> None:
    await FaultRun(stage, events, orders=200, kills=12, seed=seed).run()


async def _poison(stage: Stage, events: int, seed: int) -> None:
    await PoisonRun(stage, pairs=max(1, events // 800)).run()


async def _down(stage: Stage, events: int, seed: int) -> None:
    await DownRun(stage, pending=events, pairs=20, burst=1_000).run()


async def _relays(stage: Stage, events: int, seed: int) -> None:
    await kill_and_wait(stage, await FreezeRun(stage, events).run(), kills=4)


async def _replay(stage: Stage, events: int, seed: int) -> None:
    await replay_run(stage, events // 2, kills=3, seed=seed)


async def _history(stage: Stage, events: int, seed: int) -> None:
    await history_run(stage, events)


RUNS: dict[str, tuple[str, Run]] = {
    "faults": ("receivers fail 5% of calls, relays are killed", _faults),
    "poison": ("a message that always gets 400, one that always gets 500", _poison),
    "down": ("a receiver is down while messages wait for it, and comes back", _down),
    "relays": ("a relay is frozen and wakes up late, others are killed", _relays),
    "replay": ("a bulk replay whose worker is killed in the middle", _replay),
    "history": ("what healthy events cost in Temporal", _history),
}


async def run_one(
    postgres: EmbeddedPostgres, temporal: EmbeddedTemporal, log: Path, name: str, asked: argparse.Namespace
) -> Promises:
    """Run on a database and an installation of its own; answer what was promised."""
    told, run = RUNS[name]
    installation, began = f"soak-{name}", time.monotonic()
    async with fresh_database(postgres, installation) as url:
        await asyncio.to_thread(migrate, url, installation)
        client = await Client.connect(temporal.address)
        async with open_stage(url, client, temporal.address, installation, log) as stage:
            await run(stage, asked.events, asked.seed)
    print(f"{name}: {told} ({asked.events:,} events, seed {asked.seed}, {time.monotonic() - began:.0f} s)")
    print("".join(f"  {line}\n" for line in stage.promises.lines), flush=True)
    return stage.promises


async def main() -> int:
    """Run as the command line says; answer how many promises were broken."""
    parser = argparse.ArgumentParser(prog="python -m soak.outbox", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--only", choices=RUNS, action="append", help="may be repeated")
    asked = parser.parse_args()
    broken = 0
    with throw_away_directory() as directory, throw_away_postgres() as postgres, throw_away_temporal() as temporal:
        for name in asked.only or RUNS:
            promises = await run_one(postgres, temporal, directory / "worker.log", name, asked)
            broken += len(promises.broken) + len(promises.late)
    print(f"{broken} promises broken." if broken else "Every promise was kept.")
    return broken


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main()) else 0)
