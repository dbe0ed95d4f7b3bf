"""A webhook receiver that remembers what came and when, and fails as it is told."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

RESET = 0
"""No answer: the connection is broken off."""
STALL = -1
"""No answer, for longer than a sender waits."""
_STALL_SECONDS = 11.0


@dataclass(frozen=True)
class Answer:
    """What a call is answered with, and whether the receiver has done what the event asks for all the same."""

    status: int
    applied: bool


TAKEN = Answer(204, applied=True)


@dataclass(frozen=True)
class Call:
    """One call as it came."""

    event_id: str
    order: str
    number: int
    """Which of its order's events it is, from 0."""
    at: float
    answer: Answer
    open: int
    """How many calls were being answered, this one included."""
    answered: int
    """How many had been answered by then."""


Answers = Callable[[str, int, int], Answer]
"""By order, number of the event in it, and how often it has come before."""


def take_all(order: str, number: int, before: int) -> Answer:
    """What a receiver that is well says."""
    return TAKEN


@dataclass(frozen=True)
class Faults:
    """A share of calls fails, chosen by the seed. Some that refuse an event do so three times: it becomes FAILED."""

    seed: str
    share: float = 0.05
    stalls: float = 0.05
    """Of the failures: a stall lasts as long as the sender is patient, and holds up its lane for so long."""
    stubborn: float = 0.1
    """Of the refusals."""

    def __call__(self, order: str, number: int, before: int) -> Answer:
        """The same for the same call of the same seed."""
        chance = random.Random(f"{self.seed} {order} {number}")
        if chance.random() < self.share / 3 * self.stubborn:
            return Answer(400, applied=False) if before < 3 else TAKEN
        chance = random.Random(f"{self.seed} {order} {number} {before}")
        if chance.random() >= self.share:
            return TAKEN
        if chance.random() < self.stalls:
            return Answer(STALL, applied=chance.random() < 0.5)
        status = chance.choice([RESET, 400, 500])
        return Answer(status, applied=status == RESET and chance.random() < 0.5)


class Receiver:
    """Applies each event once, by its `webhook-id` and nothing else."""

    def __init__(self, answers: Answers = take_all, *, answer_seconds: float = 0.0) -> None:
        self.answers = answers
        self.answer_seconds = answer_seconds
        self.calls: list[Call] = []
        self.applied: defaultdict[str, list[int]] = defaultdict(list)
        """By order: the events' numbers, as they were applied."""
        self.times: Counter[str] = Counter()
        """By `webhook-id`: how often it came."""
        self.first_at: dict[str, float] = {}
        """By `webhook-id`: when it came first."""
        self._known: set[str] = set()
        self._open = 0
        self._answered = 0

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[str]:
        """Listen on a loopback port until the block ends; yields the URL."""
        server = web.Server(self._receive, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
        finally:
            await runner.cleanup()

    async def _receive(self, request: web.BaseRequest) -> web.StreamResponse:
        self._open += 1
        try:
            return await self._answer(request, time.monotonic())
        finally:
            self._open -= 1
            self._answered += 1

    async def _answer(self, request: web.BaseRequest, at: float) -> web.StreamResponse:
        event_id = request.headers["webhook-id"]
        event = json.loads(await request.read())
        order, number = event["data"]["orderId"], event["data"]["number"]
        answer = self.answers(order, number, self.times[event_id])
        self.times[event_id] += 1
        self.first_at.setdefault(event_id, at)
        self.calls.append(Call(event_id, order, number, at, answer, self._open, self._answered))
        if answer.applied and event_id not in self._known:
            self._known.add(event_id)
            self.applied[order].append(number)
        if answer.status == STALL:
            await asyncio.sleep(_STALL_SECONDS)
        if answer.status > 0:
            await asyncio.sleep(self.answer_seconds)
            return web.Response(status=answer.status)
        if request.transport is not None:  # else the sender has gone already
            request.transport.abort()
        return web.Response()

    @property
    def applied_count(self) -> int:
        """How many events it has applied."""
        return len(self._known)

    def has_applied(self, event_ids: set[str]) -> bool:
        """Whether it has applied all of these."""
        return event_ids <= self._known
