"""`python -m bench.outbox_receiver`: a webhook receiver in a process of its own. It counts and verifies nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

from bench.outbox_processes import be_a_helper


class Receiver:
    """Takes everything at once, and remembers when what came."""

    def __init__(self) -> None:
        self._arrived: list[tuple[str, float]] = []
        self.server = web.Server(self._receive, access_log=None)

    async def _receive(self, request: web.BaseRequest) -> web.StreamResponse:
        # The clock is the machine's: other processes read the same.
        self._arrived.append((request.headers["webhook-id"], time.monotonic()))
        await request.read()
        return web.Response(status=204)

    def report(self) -> Any:
        """What came since the last report: connections that are open now, and each event's id and moment."""
        arrived, self._arrived = self._arrived, []
        return {"connections": len(self.server.connections), "arrived": arrived}


async def main() -> None:
    """Listen until standard input ends."""
    receiver = Receiver()
    runner = web.ServerRunner(receiver.server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    await be_a_helper(runner.addresses[0][1], receiver.report)


if __name__ == "__main__":
    asyncio.run(main())
