"""The relays that carry the news, and the retries of the messages that fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import structlog
from temporalio import activity
from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes, WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError

from activities.heartbeat import heartbeats
from activities.outbox_pump import EVIDENCE_SECONDS
from activities.outbox_pumps import Pumps
from db.engine import DATABASE_ERRORS, Database, error_code
from db.ops import workers_alive
from db.outbox import relay, retries, settle
from db.outbox.retries import FailingMessage, Retry
from db.outbox.write import EVENTS_CHANNEL
from domain.ids import ERROR_CLASS_ATTRIBUTE, EVENT_TYPE_ATTRIBUTE, FAILURE_WORKFLOW, LOOK_AGAIN_SIGNAL, Names
from domain.outbox import (
    Endpoint,
    ErrorClass,
    Message,
    MessageStatus,
    SinkKind,
    parse_message_id,
    relay_share,
    retry_delay_seconds,
)
from sinks import SendFailed, Sink, deliver

log = structlog.get_logger(__name__)

RELAY_SECONDS = 600
"""How long one relay activity works before its workflow continues as new."""
_LOOK_SECONDS = 1.0
_FAILURES_BATCH = 50
_SHARE_SECONDS = 1.0
_LISTEN_AGAIN_SECONDS = 1.0

_EVENT_TYPE = SearchAttributeKey.for_keyword(EVENT_TYPE_ATTRIBUTE)
_ERROR_CLASS = SearchAttributeKey.for_keyword(ERROR_CLASS_ATTRIBUTE)


@dataclass(frozen=True)
class RetryOutcome:
    """Where a failing message stands after a try."""

    status: MessageStatus
    attempts: int
    error: str = ""
    """Without the receiver's own words, which may echo what Temporal must not keep."""
    wait_seconds: float = 0.0
    """RETRYING: until the next try."""
    place_given_back: bool = False
    """RETRYING: its endpoint cannot be sent to, or nothing passes there. By and by, another workflow goes on."""


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
        self._carried: dict[asyncio.Event, int] = {}
        """The shards of the relays that run here, by what wakes each when events were committed. After a freeze there
        may be two of one shard for a moment: the late one's end takes nothing from the other."""

    async def listen(self) -> None:
        """Wake this worker's relays when events were committed, for as long as it runs."""
        while True:
            try:
                await self._database.listen(EVENTS_CHANNEL, self._wake)
            except DATABASE_ERRORS as error:
                log.warning("relays look by themselves until they can listen again", error=error_code(error))
            await asyncio.sleep(_LISTEN_AGAIN_SECONDS)

    def _wake(self) -> None:
        for news in self._carried:
            news.set()

    @activity.defn
    async def relay(self, shard: int) -> None:
        """Carry a shard's messages until it is time to continue as new.

        Ends earlier, for another worker's relay to go on, when this worker shuts down or holds more than its share.
        """
        if await self._over_share(len(self._carried) + 1):
            raise _give_back("this worker carries its share", _SHARE_SECONDS)
        news = asyncio.Event()
        self._carried[news] = shard
        try:
            await self._relay(shard, news)
        finally:
            del self._carried[news]

    async def _relay(self, shard: int, news: asyncio.Event) -> None:
        epoch = await self._database.transact(lambda connection: relay.take_shard(connection, shard, self._worker_id))
        await self._database.transact(partial(retries.fail_suspects, shard=shard, epoch=epoch))
        log.info("relay took its shard", shard=shard, epoch=epoch)
        pumps = Pumps(self._database, self._sinks, shard, epoch, news)
        try:
            await self._carry(shard, epoch, pumps)
        finally:
            async with heartbeats():  # nobody else takes the shard, and sends all of it again, while this lasts
                await pumps.drain()
        if activity.is_worker_shutdown():
            raise _give_back("the worker shuts down", 0.05)

    async def _over_share(self, carried: int) -> bool:
        return carried > relay_share(await self._database.execute_once(workers_alive))

    async def _carry(self, shard: int, epoch: int, pumps: Pumps) -> None:
        """Keep the shard's pumps going, and once a second look after what is not in the fast path."""
        began = time.monotonic()
        looked_at = 0.0
        while not activity.is_worker_shutdown() and time.monotonic() - began < RELAY_SECONDS:
            activity.heartbeat()
            ready = await self._database.execute_once(partial(relay.ready_endpoints, shard=shard))
            await pumps.tend(ready)
            if time.monotonic() - looked_at > _LOOK_SECONDS:
                looked_at = time.monotonic()
                await self._start_failure_workflows(shard, epoch)
                # One shard at a time, and always the same one: all its relays look at the same moment.
                if shard == max(self._carried.values()) and await self._over_share(len(self._carried)):
                    raise _give_back("this worker carries more than its share", _SHARE_SECONDS)

    async def _start_failure_workflows(self, shard: int, epoch: int) -> None:
        async with self._database.read() as connection:
            await relay.check_epoch(connection, shard, epoch)
            waiting = await retries.without_workflow(connection, shard, _FAILURES_BATCH)
        for failing in waiting:
            activity.heartbeat()
            # Before the start: its end, which may come at once, gives the place back.
            await self._database.transact(partial(retries.mark_workflow_started, failing=failing))
            try:
                await self._start_failure_workflow(failing)
            except RPCError as error:
                log.warning("a failure's workflow was not started", message_id=failing.message_id, error=error.message)
                await self._database.transact(partial(retries.give_place_back, failing=failing))
                return  # the rows wait, and the messages that are well go on

    async def _start_failure_workflow(self, failing: FailingMessage) -> None:
        await self._client.start_workflow(
            FAILURE_WORKFLOW,
            failing.message_id,
            id=self._names.failure(failing.message_id),
            task_queue=self._names.main_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            start_signal=LOOK_AGAIN_SIGNAL,  # one that still sleeps on from before a replay looks at once
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
        ends_at = asyncio.get_running_loop().time() + retries.ATTEMPT_SECONDS
        begun = await self._begin_retry(position, endpoint_id)
        if begun is None:
            return RetryOutcome(MessageStatus.IGNORED, 0, error="its endpoint was deleted")
        message, endpoint = begun.message, begun.endpoint
        if message is None or endpoint is None:
            return RetryOutcome(
                begun.status,
                begun.attempts,
                wait_seconds=begun.wait_seconds,
                place_given_back=begun.place_given_back,
            )
        try:
            async with asyncio.timeout_at(ends_at):
                await deliver(self._sinks[endpoint.kind], endpoint, message)
        except SendFailed as error:
            return await self._retry_failed(message, endpoint, error)
        except asyncio.CancelledError:
            await self._interrupt(message, endpoint)
            raise
        except TimeoutError:
            unending = SendFailed(None, f"not over within {retries.ATTEMPT_SECONDS:g} s")
            return await self._retry_failed(message, endpoint, unending)
        await self._database.transact(partial(retries.retry_delivered, message=message, endpoint=endpoint))
        return RetryOutcome(MessageStatus.DELIVERED, message.attempts)

    async def _begin_retry(self, position: int, endpoint_id: int) -> Retry | None:
        """Begin one wholly or not at all: an attempt that nobody knows of would keep the next one waiting."""
        begin = partial(retries.begin_retry, position=position, endpoint_id=endpoint_id)
        beginning = asyncio.create_task(self._database.transact(begin))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            begun = await beginning
            if begun and begun.message and begun.endpoint:
                await self._interrupt(begun.message, begun.endpoint)
            raise

    async def _interrupt(self, message: Message, endpoint: Endpoint) -> None:
        """The worker shuts down: nobody need wait for an end that will not be seen."""
        end = partial(retries.end_open_attempt, position=message.position, endpoint_id=endpoint.endpoint_id)
        await self._database.transact(partial(end, began_at=message.claimed_at))

    async def _retry_failed(self, message: Message, endpoint: Endpoint, error: SendFailed) -> RetryOutcome:
        """Judge as the pump does: in doubt it is the event's fault only where other lanes' events pass there.

        A probe of an open breaker that fails in doubt leaves it open, whatever passed before.
        """
        error_class = ErrorClass.ENDPOINT if error.in_doubt and endpoint.probing else error.blame
        if error_class is None:
            async with self._database.read() as connection:
                passed = await settle.others_pass(connection, endpoint.endpoint_id, message, EVIDENCE_SECONDS)
            error_class = ErrorClass.UNKNOWN if passed else ErrorClass.ENDPOINT
        delay = retry_delay_seconds(error_class, message.attempts, error.retry_after_seconds)
        failed = partial(
            retries.retry_failed,
            message=message,
            endpoint=endpoint,
            error_class=error_class,
            error=error.full,
            delay_seconds=delay,
            in_doubt=error.in_doubt,
        )
        asked = {"gone": error.gone, "retry_after_seconds": error.retry_after_seconds}
        given_back = await self._database.transact(partial(failed, **asked))
        status = MessageStatus.FAILED if delay is None else MessageStatus.RETRYING
        attempts = message.attempts - 1 if error_class is ErrorClass.ENDPOINT else message.attempts
        return RetryOutcome(status, attempts, f"{error_class}: {error.detail}", delay or 0.0, given_back)


def _give_back(why: str, seconds: float) -> ApplicationError:
    """Leave the shard to another worker, soon: a retry of the activity, which writes no history."""
    return ApplicationError(why, next_retry_delay=timedelta(seconds=seconds), category=ApplicationErrorCategory.BENIGN)
