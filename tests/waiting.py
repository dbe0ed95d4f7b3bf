"""The only way a test waits: for something to become true, with a limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.02


def wait_until(condition: Callable[[], object], timeout_seconds: float = 10.0) -> None:
    """Poll until `condition()` is truthy. Raises `AssertionError` after `timeout_seconds`."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true after {timeout_seconds:g} s: {condition}"
        time.sleep(_POLL_SECONDS)


async def eventually(condition: Callable[[], Awaitable[T]], timeout_seconds: float = 10.0) -> T:
    """Poll until `await condition()` is truthy, and return that. Raises `AssertionError` after `timeout_seconds`."""
    deadline = time.monotonic() + timeout_seconds
    while not (value := await condition()):
        assert time.monotonic() < deadline, f"not true after {timeout_seconds:g} s: {condition}, last {value!r}"
        await asyncio.sleep(_POLL_SECONDS)
    return value
