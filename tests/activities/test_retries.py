"""A failing message's tries, one at a time, and an admin who decides while one of them is in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio
from temporalio.testing import ActivityEnvironment

from activities.outbox import OutboxActivities, RetryOutcome
from db.outbox import retries
from db.outbox.retries import LEASE_SECONDS
from db.outbox.write import write_events
from domain.outbox import EventType, MessageStatus, SinkKind, message_id, order_event
from sinks.webhook import WebhookSink
from tests.activities.lanes import PatientReceiver
from tests.houses import House
from tests.waiting import eventually

ORDER = "o-1"
FAILURES = "/api/admin/ops/outbox/failures"


@pytest_asyncio.fixture
async def outbox(quiet_house: House) -> AsyncIterator[OutboxActivities]:
    """The retries of a worker that runs nothing by itself."""
    house, sink = quiet_house, WebhookSink(allow_private=True)
    yield OutboxActivities(house.database, house.temporal, house.names, {SinkKind.WEBHOOK: sink}, worker_id="worker-1")
    await sink.close()


async def failing_message(house: House, url: str) -> str:
    """A message that failed once, and is due to be tried again; answers its id."""
    await house.webhook("shop", url)
    event = order_event(EventType.ORDER_RESERVED, ORDER, ORDER, {"status": "RESERVED"})
    await house.database.transact(lambda connection: write_events(connection, [event]))
    [(position, endpoint_id)] = await house.sql("""
        WITH gone AS (DELETE FROM outbox_messages RETURNING *)
        INSERT INTO outbox_failures (endpoint_id, position, event_position, shard, lane, event_type, status, attempts,
            error_class, last_error, fingerprint)
        SELECT endpoint_id, position, event_position, shard, lane, 'waybill.order.reserved', 'RETRYING', 1, 'event',
            'HTTP 400', 'f' FROM gone RETURNING position, endpoint_id
    """)
    return message_id(position, endpoint_id)


async def in_flight(outbox: OutboxActivities, receiver: PatientReceiver, message: str) -> asyncio.Task[RetryOutcome]:
    """A try that waits for its receiver's answer."""
    receiver.held[ORDER] = asyncio.Event()
    trying = asyncio.create_task(ActivityEnvironment().run(outbox.retry_message, message))

    async def arrived() -> bool:
        return receiver.arrived == [ORDER]

    await eventually(arrived)
    return trying


@pytest.mark.parametrize("action", ["replay", "ignore", "fix"])
async def test_what_an_admin_decides_beside_a_try_waits_for_its_end_and_sends_nothing_twice(
    quiet_house: House, outbox: OutboxActivities, action: str
) -> None:
    async with PatientReceiver() as receiver:
        message = await failing_message(quiet_house, receiver.url)
        trying = await in_flight(outbox, receiver, message)
        body = {
            "reason": "mended",
            **({"payload": {"orderId": ORDER, "status": "RESERVED"}} if action == "fix" else {}),
        }
        deciding = asyncio.create_task(quiet_house.call("POST", f"{FAILURES}/{message}/{action}", body))
        second = await ActivityEnvironment().run(outbox.retry_message, message)  # a workflow that was taken for lost
        assert second.status is MessageStatus.RETRYING
        receiver.held[ORDER].set()
        assert (await trying).status is MessageStatus.DELIVERED
        answer = await deciding
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/message-settled")
    assert answer.json()["messageStatus"] == "DELIVERED"
    assert receiver.arrived == [ORDER]
    assert await quiet_house.sql("SELECT count(*) FROM outbox_messages") == [(0,)]


async def test_an_admin_is_told_when_a_try_whose_worker_was_killed_counts_as_over(quiet_house: House) -> None:
    message = await failing_message(quiet_house, "http://127.0.0.1:9/")
    position, endpoint_id = map(int, message.split("-"))
    begin = partial(retries.begin_retry, position=position, endpoint_id=endpoint_id)
    await quiet_house.database.transact(begin)
    began = time.monotonic()
    answer = await quiet_house.call("POST", f"{FAILURES}/{message}/replay", {"reason": "mended"})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/attempt-in-flight")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["overWithinSeconds"] == int(answer.headers["retry-after"])
    assert 0 < answer.json()["overWithinSeconds"] <= LEASE_SECONDS - (time.monotonic() - began) + 2
    await quiet_house.sql("UPDATE outbox_failures SET attempt_began_at = now() - interval '1 minute'")
    answer = await quiet_house.call("POST", f"{FAILURES}/{message}/replay", {"reason": "mended"})
    assert (answer.status_code, answer.json()["status"]) == (200, "PENDING")


async def test_a_worker_that_shuts_down_in_a_try_leaves_it_to_the_next_one_at_once(
    quiet_house: House, outbox: OutboxActivities
) -> None:
    async with PatientReceiver() as receiver:
        message = await failing_message(quiet_house, receiver.url)
        trying = await in_flight(outbox, receiver, message)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        receiver.held.pop(ORDER).set()
        outcome = await ActivityEnvironment().run(outbox.retry_message, message)
    assert (outcome.status, outcome.attempts) == (MessageStatus.DELIVERED, 3)
    assert await quiet_house.sql("SELECT outcome FROM outbox_attempts") == [("interrupted",)]
