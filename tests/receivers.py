"""A webhook receiver over real HTTP: it remembers what it got, and fails as a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web
from standardwebhooks import Webhook

from tests.waiting import eventually

ABORT = 0
"""An answer that is none: the connection is closed."""


@dataclass(frozen=True)
class Received:
    """One request as it arrived, and how it was answered."""

    headers: dict[str, str]
    body: bytes
    status: int

    @property
    def event(self) -> dict[str, Any]:
        """The CloudEvent in it."""
        event: dict[str, Any] = json.loads(self.body)
        return event

    @property
    def type(self) -> str:
        """The event's type without its prefix: `order.reserved`."""
        return str(self.event["type"]).removeprefix("waybill.")


class Receiver:
    """`answer` maps an event to the HTTP status it is answered with; 200 for all unless a test says otherwise."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.answer: Callable[[dict[str, Any]], int] = lambda event: 200
        self.answer_seconds = 0.0
        """How long it thinks before it answers."""
        app = web.Application()
        app.router.add_post("/{path:.*}", self._receive)
        self._runner = web.AppRunner(app)
        self._port = 0

    async def __aenter__(self) -> Self:
        """Listen on a free loopback port."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}/events"

    async def _receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        await asyncio.sleep(self.answer_seconds)
        status = self.answer(json.loads(body))
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Received(headers, body, status))
        if status == ABORT:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return web.Response(status=status)

    @property
    def accepted(self) -> list[Received]:
        """What was answered with success, in order of arrival."""
        return [received for received in self.requests if 200 <= received.status < 300]

    def types(self, lane: str | None = None) -> list[str]:
        """Types of the accepted events, of one order or of all."""
        return [each.type for each in self.accepted if lane in (None, each.event["data"].get("orderId"))]

    async def got(self, *types: str, lane: str | None = None, timeout_seconds: float = 10.0) -> None:
        """Wait until exactly these events were accepted, in this order."""

        async def arrived() -> bool:
            return len(self.types(lane)) >= len(types)

        await eventually(arrived, timeout_seconds)
        assert self.types(lane) == list(types)


def verified(received: Received, secret: str) -> dict[str, Any]:
    """The event, its signature checked by the `standardwebhooks` package. Raises when it is not genuine."""
    event: dict[str, Any] = Webhook(secret).verify(received.body, received.headers)
    return event
