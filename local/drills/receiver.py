"""A webhook receiver for drills."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


@asynccontextmanager
async def receiving(refusal: Callable[[dict[str, Any]], str | None]) -> AsyncIterator[str]:
    """Take events on loopback, or answer 400 with the words of `refusal`; yields the address."""

    async def receive(request: web.Request) -> web.Response:
        words = refusal(json.loads(await request.read()))
        return web.Response(status=204) if words is None else web.Response(status=400, text=words)

    app = web.Application()
    app.router.add_post("/events", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/events"
    finally:
        await runner.cleanup()
