"""Whether the ports that the stack wants are free, and who holds those that are not."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from local.errors import StackError


@dataclass(frozen=True)
class WantedPort:
    """A TCP port, what listens on it, and the variable that moves it."""

    host: str
    port: int
    purpose: str
    variable: str


def require_free(wanted: Iterable[WantedPort]) -> None:
    """Raises `StackError` for a port that is busy or wanted twice: its variable and, if the system says, its holder."""
    taken: dict[int, WantedPort] = {}
    for want in wanted:
        if (other := taken.get(want.port)) is not None:
            raise StackError(
                f"Port {want.port} is asked for twice, for {other.purpose} and for {want.purpose}: "
                f"set {other.variable} or {want.variable}."
            )
        taken[want.port] = want
        problem = _problem(want)
        if problem is not None:
            raise StackError(
                f"Port {want.port} for {want.purpose} {problem}: free it, or set {want.variable} to another port."
            )


_FREE_PORTS = range(10_000, 32_000)
"""Below those that systems give to outgoing connections (on Linux from 32768), which come at any moment."""


def free_port() -> int:
    """A loopback TCP port that nothing listens on at this moment."""
    while True:
        port = random.choice(_FREE_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _problem(want: WantedPort) -> str | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(want.host, want.port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        return f"cannot be opened, {want.host!r} is no address of this machine ({error.strerror})"
    with socket.socket(family, kind, protocol) as probe:
        # As servers do it: connections that are only lingering after their close do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen()
        except PermissionError:
            return "may not be opened by this user"
        except OSError as error:
            holder = _holder(want.port)
            return f"is in use{holder}" if holder else f"cannot be opened on {want.host} ({error.strerror})"
    return None


def _holder(port: int) -> str:
    """ " by NAME (process ID)", or "" where the system does not say."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                if connection.pid is None:
                    return " by another process"
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    return ""
