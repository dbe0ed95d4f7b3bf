"""A server that speaks just enough gRPC to answer Temporal's health check, as staged, and fails all real calls."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from enum import IntEnum

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING = 0x0, 0x1, 0x4, 0x6
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_UNIMPLEMENTED, _UNAVAILABLE = 12, 14


class Health(IntEnum):
    """What a check finds: the protocol's statuses, or a call that fails."""

    FAILING = 0
    SERVING = 1
    NOT_SERVING = 2


@asynccontextmanager
async def frontend(checks: Iterable[Health]) -> AsyncIterator[str]:
    """Serve on loopback; yields the address. Each check finds the next of `checks`."""
    staged = iter(checks)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests: dict[int, bytes] = {}
        try:
            await reader.readexactly(len(_PREFACE))
            writer.write(_frame(_SETTINGS, 0, 0))
            while True:
                head = await reader.readexactly(9)
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:])
                payload = await reader.readexactly(int.from_bytes(head[:3]))
                if kind in (_SETTINGS, _PING) and not flags & _ACK:
                    writer.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
                elif kind == _DATA:
                    requests[stream] = requests.get(stream, b"") + payload
                    if flags & _END_STREAM:
                        writer.write(_reply(stream, requests.pop(stream), staged))
        except asyncio.IncompleteReadError:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


def _reply(stream: int, request: bytes, staged: Iterator[Health]) -> bytes:
    asked = gzip.decompress(request[5:]) if request[0] else request[5:]
    if not asked:  # on connecting: what can the server do? nothing
        return _success(stream, b"")
    if b"WorkflowService" not in asked:  # only the health check names a service
        return _failure(stream, _UNIMPLEMENTED)
    health = next(staged)
    # HealthCheckResponse: field 1, a varint.
    return _success(stream, bytes([0x08, health])) if health else _failure(stream, _UNAVAILABLE)


def _success(stream: int, message: bytes) -> bytes:
    return (
        _frame(_HEADERS, _END_HEADERS, stream, _OK)
        + _frame(_DATA, 0, stream, b"\0" + len(message).to_bytes(4) + message)
        + _frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _field("grpc-status", "0"))
    )


def _failure(stream: int, code: int) -> bytes:
    return _frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _OK + _field("grpc-status", str(code)))


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _field(name: str, value: str) -> bytes:
    """A header as HPACK spells a literal that is not indexed."""
    return bytes([0, len(name), *name.encode(), len(value), *value.encode()])


_OK = b"\x88" + _field("content-type", "application/grpc")  # 0x88: ":status: 200", of the static table
