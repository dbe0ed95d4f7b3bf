"""The relays that carry the news, and the retries of the messages that fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import structlog
from temporalio import activity
from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes, WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.outbox_pump import Pump
from db.engine import Database
from db.ops import workers_alive
from db.outbox import failures, relay
from db.outbox.failures import FailingMessage
from domain.ids import ERROR_CLASS_ATTRIBUTE, EVENT_TYPE_ATTRIBUTE, FAILURE_WORKFLOW, Names
from domain.outbox import ErrorClass, MessageStatus, SinkKind, parse_message_id, relay_share, retry_delay_seconds
from sinks import SendFailed, Sink

log = structlog.get_logger(__name__)

RELAY_SECONDS = 600
"""How long one relay activity works before its workflow continues as new."""
_IDLE_SECONDS = (0.01, 0.1)
"""The poll's pause: from the first, doubling while nothing is ready, to the second."""
_LOOK_SECONDS = 1.0
_FAILURES_BATCH = 50
_DRAIN_SECONDS = 5.0
_SHARE_SECONDS = 1.0

_EVENT_TYPE = SearchAttributeKey.for_keyword(EVENT_TYPE_ATTRIBUTE)
_ERROR_CLASS = SearchAttributeKey.for_keyword(ERROR_CLASS_ATTRIBUTE)


@dataclass(frozen=True)
class RetryOutcome:
    """Where a failing message stands after a try."""

    status: MessageStatus
    attempts: int
    error_class: ErrorClass | None = None
    error: str | None = None
    wait_seconds: float = 0.0
    """RETRYING: until the next try."""


class OutboxActivities:
    """Relays (on a queue of their own) and retries."""

    def __init__(
        self, database: Database, client: Client, names: Names, sinks: Mapping[SinkKind, Sink], *, worker_id: str
    ) -> None:
        self._database = database
        self._client = client
        self._names = names
        self._sinks = sinks
        self._worker_id = worker_id
        self._carried: set[int] = set()

    @activity.defn
    async def relay(self, shard: int) -> None:
        """Carry a shard's messages until it is time to continue as new.

        Ends earlier, for another worker's relay to go on, when this worker shuts down or holds more than its share.
        """
        if await self._over_share(len(self._carried) + 1):
            raise _give_back("this worker carries its share", _SHARE_SECONDS)
        self._carried.add(shard)
        try:
            await self._relay(shard)
        finally:
            self._carried.discard(shard)

    async def _relay(self, shard: int) -> None:
        epoch = await self._database.transact(lambda connection: relay.take_shard(connection, shard, self._worker_id))
        log.info("relay took its shard", shard=shard, epoch=epoch)
        pumps: dict[int, asyncio.Task[None]] = {}
        stop = asyncio.Event()
        try:
            await self._carry(shard, epoch, pumps, stop)
        finally:
            stop.set()
            await _drain(pumps.values())
        if activity.is_worker_shutdown():
            raise _give_back("the worker shuts down", 0.05)

    async def _over_share(self, carried: int) -> bool:
        async with self._database.read() as connection:
            return carried > relay_share(await workers_alive(connection))

    async def _carry(self, shard: int, epoch: int, pumps: dict[int, asyncio.Task[None]], stop: asyncio.Event) -> None:
        """Watch which endpoints have something ready, and run one pump for each."""
        began = time.monotonic()
        looked_at = 0.0
        pause = _IDLE_SECONDS[0]
        while not activity.is_worker_shutdown() and time.monotonic() - began < RELAY_SECONDS:
            activity.heartbeat()
            async with self._database.read() as connection:
                ready = await relay.ready_endpoints(connection, shard)
            for endpoint in ready:
                if endpoint.endpoint_id not in pumps:
                    pump = Pump(self._database, self._sinks[endpoint.kind], endpoint, shard, epoch, stop)
                    pumps[endpoint.endpoint_id] = asyncio.create_task(pump.run())
            if time.monotonic() - looked_at > _LOOK_SECONDS:
                looked_at = time.monotonic()
                await self._start_failure_workflows(shard, epoch)
                # One shard at a time, and always the same one: all its relays look at the same moment.
                if shard == max(self._carried) and await self._over_share(len(self._carried)):
                    raise _give_back("this worker carries more than its share", _SHARE_SECONDS)
            pause = _IDLE_SECONDS[0] if pumps else min(pause * 2, _IDLE_SECONDS[1])
            if pumps:
                await asyncio.wait(pumps.values(), timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(pause)
            for endpoint_id, task in list(pumps.items()):
                if task.done():
                    del pumps[endpoint_id]
                    task.result()  # raises StaleEpoch, or what made the database unreachable: the activity is retried

    async def _start_failure_workflows(self, shard: int, epoch: int) -> None:
        async with self._database.read() as connection:
            await relay.check_epoch(connection, shard, epoch)
            waiting = await failures.without_workflow(connection, shard, _FAILURES_BATCH)
        for failing in waiting:
            await self._start_failure_workflow(failing)
            await self._database.transact(partial(failures.mark_workflow_started, failing=failing))

    async def _start_failure_workflow(self, failing: FailingMessage) -> None:
        await self._client.start_workflow(
            FAILURE_WORKFLOW,
            failing.message_id,
            id=self._names.failure(failing.message_id),
            task_queue=self._names.main_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"{failing.event_type}, message {failing.message_id}",
            search_attributes=TypedSearchAttributes(
                [
                    SearchAttributePair(_EVENT_TYPE, failing.event_type),
                    SearchAttributePair(_ERROR_CLASS, failing.error_class),
                ]
            ),
        )

    @activity.defn
    async def retry_message(self, message_id: str) -> RetryOutcome:
        """Try a failing message once more, if it is due; the attempt is counted before it is made."""
        key = parse_message_id(message_id)
        if key is None:
            raise ApplicationError(f"{message_id!r} is no message's id", non_retryable=True)
        position, endpoint_id = key
        begun = await self._database.transact(
            lambda connection: failures.begin_retry(connection, position, endpoint_id)
        )
        if begun is None:
            return RetryOutcome(MessageStatus.IGNORED, 0, error="its endpoint was deleted")
        message, endpoint = begun.message, begun.endpoint
        if message is None or endpoint is None:
            return RetryOutcome(begun.status, begun.attempts, wait_seconds=begun.wait_seconds)
        try:
            await self._sinks[endpoint.kind].send(endpoint, message)
        except SendFailed as error:
            # The breaker is closed (begin_retry looked): other lanes' events pass, so doubt counts against this one.
            error_class = error.blame or ErrorClass.UNKNOWN
            delay = retry_delay_seconds(error_class, message.attempts)
            detail = error.detail
            await self._database.transact(
                lambda connection: failures.retry_failed(connection, message, endpoint_id, error_class, detail, delay)
            )
            status = MessageStatus.FAILED if delay is None else MessageStatus.RETRYING
            return RetryOutcome(status, message.attempts, error_class, detail, delay or 0.0)
        await self._database.transact(lambda connection: failures.retry_delivered(connection, message, endpoint_id))
        return RetryOutcome(MessageStatus.DELIVERED, message.attempts)


def _give_back(why: str, seconds: float) -> ApplicationError:
    """Leave the shard to another worker, soon: a retry of the activity, which writes no history."""
    return ApplicationError(why, next_retry_delay=timedelta(seconds=seconds), category=ApplicationErrorCategory.BENIGN)


async def _drain(pumps: Collection[asyncio.Task[None]]) -> None:
    """Let what is being sent end and be settled, but not for ever. What went wrong in a pump was told before."""
    if pumps:
        _, late = await asyncio.wait(pumps, timeout=_DRAIN_SECONDS)
        for pump in late:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
