"""A bare TCP server: it counts who knocks, and answers with the bytes that a test wants, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Door:
    """Where it listens, and who came."""

    port: int = 0
    knocks: int = 0

    @property
    def url(self) -> str:
        """Its address as a webhook's URL."""
        return f"http://127.0.0.1:{self.port}/events"


@asynccontextmanager
async def door(answer: Answer) -> AsyncIterator[Door]:
    """Listen on a free port of the IPv4 loopback, and of the IPv6 one where there is one."""
    opened = Door()
    visits: set[asyncio.Task[None]] = set()

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.knocks += 1
        task = asyncio.current_task()
        assert task is not None
        visits.add(task)
        try:
            await answer(reader, writer)
        finally:
            visits.discard(task)
            writer.close()

    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(await asyncio.start_server(visit, "127.0.0.1", 0))
        opened.port = server.sockets[0].getsockname()[1]
        with contextlib.suppress(OSError):
            await stack.enter_async_context(await asyncio.start_server(visit, "::1", opened.port))
        try:
            yield opened
        finally:
            for each in visits:
                each.cancel()


def saying(text: str) -> Answer:
    """Answer every request with this text, then hang up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(text.encode())
        await writer.drain()

    return answer


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read everything and never answer."""
    while await reader.read(1000):
        pass


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Break the connection off after the request."""
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
