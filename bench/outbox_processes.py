"""Helper processes of a measurement: each says on which port it listens, and at its end what it has seen."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Helper:
    """A running helper."""

    port: int
    _process: asyncio.subprocess.Process

    async def ask(self) -> Any:
        """What it has seen since it was asked before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        return json.loads(await self._process.stdout.readline())


@asynccontextmanager
async def helper(module: str, *arguments: str) -> AsyncIterator[Helper]:
    """Run `python -m module arguments` until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    try:
        assert process.stdout is not None
        yield Helper(int(await process.stdout.readline()), process)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


async def be_a_helper(port: int, report: Callable[[], Any]) -> None:
    """In the helper: say the port, and answer each line of standard input with a report, until it ends."""
    print(port, flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(report()), flush=True)
