"""`python -m local.drills NAME`: stages an incident of the runbook on the running stack."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from asyncpg import PostgresError
from temporalio.service import RPCError

from local.announce import say
from local.demo.client import Api, GaveUp, Unexpected
from local.drills import conflicts, drift, outage, poison, stuck
from local.drills.scene import LOOK_SECONDS, PATIENCE_SECONDS, Drill, Incident, Scene
from local.errors import StackError
from local.running import RunningStack, running_stack
from settings import SettingsError

_SAY_SECONDS = 5.0
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, and also where SIGINT is ignored (in a script's background); kill; a terminal that was closed."""
DRILLS = {
    "poison": poison.DRILL,
    "outage": outage.DRILL,
    "drift": drift.DRILL,
    "stuck": stuck.DRILL,
    "conflicts": conflicts.DRILL,
}


def main(arguments: Sequence[str]) -> None:
    """Run a drill. Raises StackError when no stack runs, GaveUp and Unexpected when the stage cannot be set."""
    parser = argparse.ArgumentParser(prog="make drill", description="Stage an incident of RUNBOOK.md on the stack.")
    parser.add_argument("name", choices=DRILLS, metavar="NAME", help=", ".join(DRILLS))
    parser.add_argument("--no-wait", action="store_true", help="leave the incident there and end")
    asked = parser.parse_args(arguments)
    asyncio.run(_until_told_to_end(run_drill(DRILLS[asked.name], running_stack(), wait=not asked.no_wait)))


async def _until_told_to_end(running: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(running)

    def end() -> None:
        if not task.cancelling():  # told twice, by make as well: what is being taken away is not left half-way
            task.cancel()

    for number in _ENDS:
        asyncio.get_running_loop().add_signal_handler(number, end)
    await task


async def run_drill(drill: Drill, stack: RunningStack, *, wait: bool) -> None:
    """Stage it, and watch until it is cleared; then, or when cancelled, take away what belongs to it."""
    async with Api(stack.url, stack.tokens, PATIENCE_SECONDS) as api:
        scene = Scene(api, stack, leaves_it=not wait)
        say("The stage is being set.")
        if names := await scene.webhooks_of_others():
            say(f"Its events go to webhooks of yours too: {', '.join(names)}. Zone, customer and SKU begin with drill.")
        async with drill.stage(scene) as incident:
            say(incident.told)
            say(f"{drill.metric} is {await scene.metric(drill.metric):g}: {drill.alert}.")
            say(f'Open RUNBOOK.md at "{drill.section}", and clear it.')
            if wait:
                say("This waits until you have; Ctrl-C takes the incident away instead.")
                await _watch(scene, drill, incident)


async def _watch(scene: Scene, drill: Drill, incident: Incident) -> None:
    said, said_at = await scene.metric(drill.metric), time.monotonic()
    while not await incident.cleared():
        await asyncio.sleep(LOOK_SECONDS)
        now = await scene.metric(drill.metric)
        if now != said and time.monotonic() > said_at + _SAY_SECONDS:
            say(f"{drill.metric} is {now:g}.")
            said, said_at = now, time.monotonic()
    say(f"It is cleared: {drill.metric} is {await scene.metric(drill.metric):g}.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (StackError, SettingsError, GaveUp, Unexpected, RPCError, PostgresError, RuntimeError, OSError) as error:
        sys.exit(f"make drill: {error}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
