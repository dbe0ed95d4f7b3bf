"""The API as the demo's clients call it: every call is tried again until it is decided, or patience ends."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

_ATTEMPT_SECONDS = 20.0
_CONNECTIONS = 200
_UNDECIDED = frozenset({429, 500, 502, 503, 504})
_FIRST_DELAY_SECONDS = 0.25
_LONGEST_DELAY_SECONDS = 2.0


class GaveUp(Exception):
    """No decision within the time that there was."""


class Unexpected(Exception):
    """An answer that the contract has not for this call."""


@dataclass(frozen=True)
class Answer:
    """What was decided."""

    status: int
    body: Any

    @property
    def slug(self) -> str:
        """Which problem it is, where it is one."""
        kind = self.body.get("type", "") if isinstance(self.body, dict) else ""
        return str(kind).removeprefix("/problems/")


class Api:
    """Calls the API with each role's token. Safe to repeat: orders carry their key, the rest is idempotent."""

    def __init__(self, url: str, tokens: Mapping[str, str], patience_seconds: float) -> None:
        self.url = url.rstrip("/")
        self.retries: Counter[str] = Counter()
        """Calls that were made again, by the reason."""
        self._tokens = dict(tokens)
        self._patience_seconds = patience_seconds

    async def __aenter__(self) -> Self:
        """Open the connections' pool."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=_ATTEMPT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self._session.close()

    async def call(
        self,
        role: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        expect: Collection[int] = (200,),
        key: str | None = None,
        patience_seconds: float | None = None,
    ) -> Answer:
        """Call until the answer is a decision. Raises GaveUp, and Unexpected for one that is not in `expect`."""
        headers = {"Authorization": f"Bearer {self._tokens[role]}"}
        if key is not None:
            headers["Idempotency-Key"] = key
        deadline = time.monotonic() + (self._patience_seconds if patience_seconds is None else patience_seconds)
        delay = _FIRST_DELAY_SECONDS
        while True:
            outcome = await self._attempt(method, path, body, headers)
            if isinstance(outcome, Answer):
                if outcome.status not in expect:
                    raise Unexpected(f"{method} {path} answered {outcome.status} {outcome.slug}".rstrip())
                return outcome
            if time.monotonic() + delay > deadline:
                raise GaveUp(f"{method} {path}: {outcome}")
            self.retries[outcome] += 1
            await asyncio.sleep(delay * random.uniform(0.75, 1.25))
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)

    async def _attempt(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Answer | str:
        """A decision, or why there is none yet."""
        try:
            async with self._session.request(method, self.url + path, json=body, headers=headers) as response:
                answer = await _body(response)
        except TimeoutError:
            return "no answer in time"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"connection: {type(error).__name__}"
        if response.status in _UNDECIDED:
            return f"HTTP {response.status}"
        return Answer(response.status, answer)


async def _body(response: aiohttp.ClientResponse) -> Any:
    """JSON, or the text of what says that it is text."""
    if response.status == 204:
        return None
    return await (response.text() if response.content_type == "text/plain" else response.json(content_type=None))
