"""`python -m bench.outbox_wire host port`: stands between a client and PostgreSQL, and counts what goes over the wire.

A round trip ends with the server's ReadyForQuery, whichever library asked and whatever for: a statement, BEGIN, COMMIT,
a ping of the pool; or it was asked for by a Flush, as asyncpg does when it prepares a statement.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections import Counter
from typing import Any

from bench.outbox_processes import be_a_helper

_READY_FOR_QUERY = ord("Z")
_QUERY, _PARSE, _EXECUTE, _FLUSH = b"QPEH"


class Wire:
    """Passes bytes on, both ways, and reads the messages in them."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._round_trips = 0
        self._kinds: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection. It must not ask for TLS."""
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        start_up = await reader.readexactly(4)
        server_writer.write(start_up + await reader.readexactly(struct.unpack("!I", start_up)[0] - 4))
        await asyncio.gather(
            self._pass_on(reader, server_writer, self._asked), self._pass_on(server_reader, writer, self._answered)
        )

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, see: Any) -> None:
        pending = b""
        while chunk := await reader.read(2**16):
            writer.write(chunk)
            pending += chunk
            at = 0
            # A message: its kind, its length (itself included), its content.
            while len(pending) - at >= 5 and len(pending) - at > (length := int.from_bytes(pending[at + 1 : at + 5])):
                see(pending[at], pending, at + 5, at + 1 + length)
                at += 1 + length
            pending = pending[at:]
            await writer.drain()
        writer.close()

    def _asked(self, kind: int, data: bytes, start: int, end: int) -> None:
        if kind == _QUERY:
            self._kinds[data[start:end].split(b"\0")[0].decode().split(" ")[0].rstrip(";") or "ping"] += 1
        elif kind == _PARSE:
            self._kinds["prepare"] += 1
        elif kind == _EXECUTE:
            self._kinds["execute"] += 1
        elif kind == _FLUSH:
            self._round_trips += 1

    def _answered(self, kind: int, *_: object) -> None:
        self._round_trips += kind == _READY_FOR_QUERY

    def report(self) -> Any:
        """What went over the wire so far."""
        return {"round_trips": self._round_trips, "kinds": dict(self._kinds)}


async def main(host: str, port: str) -> None:
    """Listen until standard input ends."""
    wire = Wire(host, int(port))
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    await be_a_helper(server.sockets[0].getsockname()[1], wire.report)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
