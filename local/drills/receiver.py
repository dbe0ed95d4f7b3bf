"""A webhook receiver for drills."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


@asynccontextmanager
async def receiving(answer: Callable[[dict[str, Any]], int]) -> AsyncIterator[str]:
    """Answer events on loopback with the status that `answer` says; yields the address."""

    async def receive(request: web.Request) -> web.Response:
        return web.Response(status=answer(json.loads(await request.read())))

    app = web.Application()
    app.router.add_post("/events", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/events"
    finally:
        await runner.cleanup()
