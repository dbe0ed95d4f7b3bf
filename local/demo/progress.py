"""How far the demo is: bars in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from local.announce import say

_BAR_SECONDS = 0.2
_LINE_SECONDS = 5.0


@dataclass(frozen=True)
class Counts:
    """How many of the `total` baskets have come how far."""

    total: int
    arrived: int
    accepted: int
    ended: int
    events: int
    retries: int

    @property
    def line(self) -> str:
        """All of it in one line."""
        return (
            f"{self.arrived} of {self.total} baskets arrived, {self.accepted} orders accepted, "
            f"{self.ended} ended; {self.events} events, {self.retries} retries."
        )


@asynccontextmanager
async def shown(counts: Callable[[], Counts]) -> AsyncIterator[None]:
    """Show the counts while the block runs, and once when it is over."""
    task = asyncio.create_task(_bars(counts) if sys.stdout.isatty() else _lines(counts))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    say(counts().line)


async def _lines(counts: Callable[[], Counts]) -> None:
    while True:
        await asyncio.sleep(_LINE_SECONDS)
        say(counts().line)


async def _bars(counts: Callable[[], Counts]) -> None:
    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), transient=True) as progress:
        now = counts()
        arrived = progress.add_task("arrived", total=now.total, note="")
        ended = progress.add_task("ended", total=now.total, note="")
        while True:
            now = counts()
            progress.update(arrived, completed=now.arrived, note=f"{now.accepted} accepted")
            progress.update(ended, completed=now.ended, note=f"{now.events} events, {now.retries} retries")
            await asyncio.sleep(_BAR_SECONDS)
