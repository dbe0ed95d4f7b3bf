"""The pumps of one shard's relay: one for each endpoint that has something ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from activities.outbox_pump import Pump
from db.engine import Database
from db.outbox import relay
from db.outbox.relay import StaleEpoch
from domain.outbox import Endpoint, SinkKind
from sinks import Sink

log = structlog.get_logger(__name__)

_PAUSES_SECONDS = (0.01, 0.5)
"""Between two looks: from the first, doubling while nothing new is ready, to the second; less where news wakes it."""
_REST_SECONDS = 1.0
_DRAIN_SECONDS = 5.0


@dataclass(frozen=True)
class _Running:
    pump: Pump
    task: asyncio.Task[None]


class Pumps:
    """Starts, renews, stops and reaps pumps as the endpoints' rows say."""

    def __init__(
        self, database: Database, sinks: Mapping[SinkKind, Sink], shard: int, epoch: int, news: asyncio.Event
    ) -> None:
        self._database = database
        self._sinks = sinks
        self._shard = shard
        self._epoch = epoch
        self._running: dict[int, _Running] = {}
        self._resting_until: dict[int, float] = {}
        self._pause_seconds = _PAUSES_SECONDS[0]
        self._news = news

    async def tend(self, ready: Sequence[Endpoint]) -> None:
        """Make the pumps follow the endpoints that are ready now, then pause. Raises StaleEpoch."""
        wanted = {endpoint.endpoint_id: endpoint for endpoint in ready}
        for endpoint_id, running in self._running.items():
            if endpoint_id in wanted:
                running.pump.endpoint = wanted[endpoint_id]  # its secret or URL may have changed
            else:
                running.pump.stop()  # disabled, deleted, broken for another shard; or simply empty
        started = [endpoint for endpoint in ready if self._may_start(endpoint)]
        for endpoint in started:
            await self._clear_up(endpoint.endpoint_id)
            pump = Pump(self._database, self._sinks[endpoint.kind], endpoint, self._shard, self._epoch)
            self._running[endpoint.endpoint_id] = _Running(pump, asyncio.create_task(pump.run()))
        self._pause_seconds = _PAUSES_SECONDS[0] if started else min(self._pause_seconds * 2, _PAUSES_SECONDS[1])
        await self._wait()
        self._reap()

    def _may_start(self, endpoint: Endpoint) -> bool:
        if endpoint.endpoint_id in self._running:
            return False
        return self._resting_until.get(endpoint.endpoint_id, 0.0) < time.monotonic()

    async def _clear_up(self, endpoint_id: int) -> None:
        """After a pump that failed, and may have left what it was sending; the next claim would cover the traces."""
        if endpoint_id in self._resting_until:
            await self._database.transact(
                lambda connection: relay.abandon_claim(connection, self._shard, endpoint_id, self._epoch)
            )
            del self._resting_until[endpoint_id]

    async def _wait(self) -> None:
        """Until a pump ends, news comes, or the pause is over."""
        news = asyncio.create_task(self._news.wait())
        tasks = [running.task for running in self._running.values()]
        await asyncio.wait([news, *tasks], timeout=self._pause_seconds, return_when=asyncio.FIRST_COMPLETED)
        news.cancel()
        if self._news.is_set():
            self._news.clear()
            self._pause_seconds = _PAUSES_SECONDS[0]
            for running in self._running.values():
                running.pump.look()

    def _reap(self) -> None:
        """Take away what has ended. One endpoint's trouble is not the others': its pump rests for a second."""
        for endpoint_id, running in list(self._running.items()):
            if not running.task.done():
                continue
            del self._running[endpoint_id]
            error = running.task.exception()
            if isinstance(error, StaleEpoch):
                raise error
            if error is not None:
                log.error("a pump failed", endpoint=running.pump.endpoint.name, error=type(error).__name__)
                self._resting_until[endpoint_id] = time.monotonic() + _REST_SECONDS

    async def drain(self) -> None:
        """Let what is being sent end and be settled, but not for ever."""
        for running in self._running.values():
            running.pump.stop()
        tasks = [running.task for running in self._running.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_DRAIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
