"""A failing message's tries, one at a time, and an admin who decides while one of them is in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio.testing import ActivityEnvironment

from activities.outbox import OutboxActivities, RetryOutcome
from db.outbox import retries
from db.outbox.retries import LEASE_SECONDS
from db.outbox.write import write_events
from domain.outbox import SHARDS, EventType, MessageStatus, SinkKind, message_id, order_event
from sinks.webhook import WebhookSink
from tests.activities.lanes import PatientReceiver
from tests.houses import House
from tests.receivers import Receiver
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


async def test_a_worker_that_was_frozen_and_shuts_down_leaves_the_try_of_its_successor_alone(
    quiet_house: House, outbox: OutboxActivities
) -> None:
    async with PatientReceiver() as receiver:
        message = await failing_message(quiet_house, receiver.url)
        frozen = await in_flight(outbox, receiver, message)
        await quiet_house.sql("UPDATE outbox_failures SET attempt_began_at = now() - interval '1 minute'")
        successor = asyncio.create_task(ActivityEnvironment().run(outbox.retry_message, message))

        async def both_arrived() -> bool:
            return receiver.arrived == [ORDER, ORDER]

        await eventually(both_arrived)
        frozen.cancel()
        with pytest.raises(asyncio.CancelledError):
            await frozen
        assert await quiet_house.sql("SELECT attempt_began_at IS NOT NULL FROM outbox_failures") == [(True,)]
        receiver.held.pop(ORDER).set()
        assert (await successor).status is MessageStatus.DELIVERED


async def test_a_worker_that_shuts_down_while_it_begins_a_try_leaves_none_open(
    quiet_house: House, outbox: OutboxActivities
) -> None:
    message = await failing_message(quiet_house, "http://127.0.0.1:9/")

    async def begins(connection: AsyncConnection) -> asyncio.Task[RetryOutcome]:
        await connection.execute(text("SELECT FROM outbox_failures FOR UPDATE"))
        beginning = asyncio.create_task(ActivityEnvironment().run(outbox.retry_message, message))

        async def waits() -> bool:
            return bool((await quiet_house.sql("SELECT count(*) FROM pg_locks WHERE NOT granted"))[0][0])

        await eventually(waits)
        beginning.cancel()
        return beginning

    beginning = await quiet_house.database.transact(begins)
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert await quiet_house.sql("SELECT attempt_began_at FROM outbox_failures") == [(None,)]
    assert await quiet_house.sql("SELECT outcome FROM outbox_attempts") == [("interrupted",)]


async def another_passes(house: House) -> None:
    """Another lane's event passed a minute ago; what this one did was before that, and its pause is over."""
    await house.sql("UPDATE outbox_attempts SET at = now() - interval '2 minutes'")
    await house.sql("UPDATE outbox_failures SET next_attempt_at = now()")
    await house.sql("""
        INSERT INTO outbox_claims (shard, endpoint_id, epoch, positions, passed_lane, passed_at)
        SELECT 0, endpoint_id, 1, '{}', 'order:another', now() - interval '1 minute' FROM outbox_endpoints
        WHERE name = 'shop' ON CONFLICT (shard, endpoint_id) DO UPDATE SET passed_at = excluded.passed_at
    """)


async def test_an_event_that_always_fails_ends_failed_however_seldom_others_pass_and_holds_none_up(
    quiet_house: House, outbox: OutboxActivities, receiver: Receiver
) -> None:
    message = await failing_message(quiet_house, receiver.url)
    receiver.answer = lambda event: 500
    opened = "SELECT consecutive_failures FROM outbox_endpoints WHERE open_until IS NOT NULL"
    alone = await ActivityEnvironment().run(outbox.retry_message, message)
    assert (alone.status, alone.error) == (MessageStatus.RETRYING, "endpoint: HTTP 500")
    assert await quiet_house.sql(opened) == [(1,)]  # nothing has passed since it was first tried
    await quiet_house.sql("UPDATE outbox_endpoints SET open_until = NULL, consecutive_failures = 0")
    for counted in range(2, 9):
        await another_passes(quiet_house)
        outcome = await ActivityEnvironment().run(outbox.retry_message, message)
        assert (outcome.attempts, outcome.error) == (counted, "unknown: HTTP 500")
        if outcome.status is MessageStatus.FAILED:
            break
        # While nobody passes it is not counted, but it is known by now: the others need not wait for its sake.
        await quiet_house.sql("UPDATE outbox_failures SET next_attempt_at = now(), workflow_started_at = now()")
        waits = await ActivityEnvironment().run(outbox.retry_message, message)
        assert (waits.attempts, waits.error, waits.place_given_back) == (counted, "endpoint: HTTP 500", True)
        assert await quiet_house.sql("SELECT workflow_started_at FROM outbox_failures") == [(None,)]
        assert await quiet_house.sql(opened) == []
        state = await quiet_house.sql("SELECT status, attempts, error_class FROM outbox_failures")
        assert state == [("RETRYING", counted, "unknown")]
    assert await quiet_house.sql("SELECT status, attempts FROM outbox_failures") == [("FAILED", 8)]


async def test_when_many_that_were_found_out_fail_and_nothing_passes_the_breaker_opens_and_none_is_counted(
    quiet_house: House, outbox: OutboxActivities, receiver: Receiver
) -> None:
    message = await failing_message(quiet_house, receiver.url)
    await another_passes(quiet_house)
    await quiet_house.sql("""
        INSERT INTO outbox_failures (endpoint_id, position, event_position, shard, lane, event_type, status, attempts,
            error_class, last_error, fingerprint)
        SELECT endpoint_id, position + n, event_position, shard, 'order:' || n, event_type, status, attempts,
            'unknown', last_error, fingerprint FROM outbox_failures, generate_series(1, 4) n
    """)
    await quiet_house.sql("UPDATE outbox_failures SET error_class = 'unknown', failed_at = now() - interval '1 hour'")
    await quiet_house.sql("UPDATE outbox_attempts SET at = now()")
    position, endpoint_id = map(int, message.split("-"))
    receiver.answer = lambda event: 503
    opened = []
    for number in range(5):
        await ActivityEnvironment().run(outbox.retry_message, message_id(position + number, endpoint_id))
        opened += await quiet_house.sql("SELECT consecutive_failures FROM outbox_endpoints WHERE name = 'shop'")
    assert opened == [(0,), (0,), (0,), (0,), (1,)]
    assert await quiet_house.sql("SELECT attempts, count(*) FROM outbox_failures GROUP BY 1") == [(1, 5)]


async def test_what_waits_by_itself_holds_no_workflows_place_until_it_is_due(quiet_house: House) -> None:
    await failing_message(quiet_house, "http://127.0.0.1:9/")

    async def offered(due_seconds: float) -> int:
        await quiet_house.sql(
            "UPDATE outbox_failures SET next_attempt_at = now() + make_interval(secs => :due)", due=due_seconds
        )
        shards = range(SHARDS)
        async with quiet_house.database.read() as connection:
            return sum([len(await retries.without_workflow(connection, shard, 10)) for shard in shards])

    assert [await offered(25.0), await offered(5.0), await offered(0.0)] == [0, 1, 1]


async def test_a_probe_by_a_failing_message_gives_way_to_what_relays_can_try(
    quiet_house: House, outbox: OutboxActivities, receiver: Receiver
) -> None:
    message = await failing_message(quiet_house, receiver.url)
    await quiet_house.sql("UPDATE outbox_endpoints SET open_until = now(), consecutive_failures = 3")
    event = order_event(EventType.ORDER_RESERVED, "o-2", "o-2", {"status": "RESERVED"})
    await quiet_house.database.transact(lambda connection: write_events(connection, [event]))
    gave_way = await ActivityEnvironment().run(outbox.retry_message, message)
    assert (gave_way.status, gave_way.attempts, gave_way.place_given_back) == (MessageStatus.RETRYING, 1, False)
    assert receiver.requests == []
    await quiet_house.sql("DELETE FROM outbox_messages")
    receiver.answer = lambda event: 500
    await another_passes(quiet_house)
    probed = await ActivityEnvironment().run(outbox.retry_message, message)
    assert probed.error == "endpoint: HTTP 500"
    failures = "SELECT consecutive_failures FROM outbox_endpoints WHERE name = 'shop' AND open_until > now()"
    assert await quiet_house.sql(failures) == [(4,)]


async def test_what_passes_by_a_retry_is_evidence_against_others(
    quiet_house: House, outbox: OutboxActivities, receiver: Receiver
) -> None:
    message = await failing_message(quiet_house, receiver.url)
    await another_passes(quiet_house)
    await quiet_house.sql("UPDATE outbox_claims SET shard = (SELECT shard FROM outbox_failures), passed_lane = NULL")
    await ActivityEnvironment().run(outbox.retry_message, message)
    assert await quiet_house.sql("SELECT passed_lane FROM outbox_claims") == [(f"order:{ORDER}",)]
