"""One pump on a real receiver: it is run by hand, so that its pauses cost no time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from activities.outbox_pump import Pump
from db.outbox import relay, retries
from db.outbox.settle import SUSPECT_LANES
from db.outbox.write import write_events
from domain.outbox import ErrorClass, EventType, message_id, order_event, shard_of
from sinks.webhook import WebhookSink
from tests.activities.lanes import decide
from tests.houses import House
from tests.receivers import Receiver
from tests.waiting import eventually

SHARD = 2
DUE = "UPDATE outbox_endpoints SET open_until = now() WHERE open_until IS NOT NULL"


@pytest_asyncio.fixture
async def sink() -> AsyncIterator[WebhookSink]:
    """Sends to loopback."""
    opened = WebhookSink(allow_private=True)
    yield opened
    await opened.close()


async def happen(house: House, prefix: str, count: int) -> None:
    """One event in each of so many lanes of the shard."""
    lanes = (f"{prefix}-{number}" for number in itertools.count())
    orders = itertools.islice((lane for lane in lanes if shard_of(f"order:{lane}") == SHARD), count)
    events = [order_event(EventType.ORDER_RESERVED, each, each, {"status": "RESERVED"}) for each in orders]
    await house.database.transact(lambda connection: write_events(connection, events))


async def pump(house: House, sink: WebhookSink, epoch: int) -> bool:
    """Pump once, as if the breaker's pause were over; answer whether there was anything to do."""
    await house.sql(DUE)
    async with house.database.read() as connection:
        ready = await relay.ready_endpoints(connection, SHARD)
    for endpoint in ready:
        await Pump(house.database, sink, endpoint, SHARD, epoch).run()
    return bool(ready)


async def take(house: House) -> int:
    return await house.database.transact(lambda connection: relay.take_shard(connection, SHARD, "test"))


async def test_probes_reach_what_is_behind_any_number_of_lanes_that_fail(
    quiet_house: House, receiver: Receiver, sink: WebhookSink
) -> None:
    receiver.answer = lambda event: 500 if event["subject"].startswith("poison") else 200
    await quiet_house.webhook("shop", receiver.url)
    await happen(quiet_house, "poison", 210)
    await happen(quiet_house, "healthy", 90)
    await quiet_house.sql("UPDATE outbox_endpoints SET open_until = now() WHERE name = 'shop'")
    epoch = await take(quiet_house)
    while not receiver.accepted:
        assert await pump(quiet_house, sink, epoch)
        assert len(receiver.requests) < 50
    assert len({each.event["subject"] for each in receiver.requests}) == len(receiver.requests)


async def test_many_lanes_that_fail_before_and_after_another_one_passes_are_found_out(
    quiet_house: House, receiver: Receiver, sink: WebhookSink
) -> None:
    receiver.answer = lambda event: 500 if event["subject"].startswith("poison") else 200
    await quiet_house.webhook("shop", receiver.url)
    await happen(quiet_house, "poison", 8)
    epoch = await take(quiet_house)
    await pump(quiet_house, sink, epoch)
    assert await quiet_house.sql("SELECT * FROM outbox_failures") == []
    await happen(quiet_house, "healthy", 1)
    while not receiver.accepted:  # a probe
        await pump(quiet_house, sink, epoch)
    await pump(quiet_house, sink, epoch)
    found_out = await quiet_house.sql("SELECT error_class, attempts, count(*) FROM outbox_failures GROUP BY 1, 2")
    assert found_out == [("unknown", 1, 8)]
    assert not await pump(quiet_house, sink, epoch)


async def test_an_outage_after_an_outage_is_nobodys_fault_but_the_endpoints(
    quiet_house: House, receiver: Receiver, sink: WebhookSink
) -> None:
    await quiet_house.webhook("shop", receiver.url)
    epoch = await take(quiet_house)
    for number in range(3):
        receiver.answer = lambda event: 503
        await happen(quiet_house, f"o{number}", 20)
        for _ in range(3):
            await pump(quiet_house, sink, epoch)
        receiver.answer = lambda event: 200
        while await pump(quiet_house, sink, epoch):
            pass
    assert len(receiver.accepted) == 60
    assert await quiet_house.sql("SELECT * FROM outbox_failures") == []


async def found_out(house: House, receiver: Receiver, sink: WebhookSink, epoch: int, count: int) -> list[str]:
    """So many messages FAILED two hours ago; an hour ago another lane's event passed. Answers their ids."""
    receiver.answer = lambda event: 400 if event["subject"].startswith("poison") else 200
    await house.webhook("shop", receiver.url)
    await happen(house, "poison", count)
    await happen(house, "healthy", 1)
    await pump(house, sink, epoch)
    await house.sql("UPDATE outbox_failures SET status = 'FAILED', error_class = 'unknown', attempts = 8")
    await house.sql("UPDATE outbox_attempts SET at = now() - interval '2 hours', outcome = 'in_doubt'")
    await house.sql("UPDATE outbox_claims SET passed_at = now() - interval '1 hour'")
    rows = await house.sql("SELECT position, endpoint_id FROM outbox_failures ORDER BY position")
    assert len(rows) == count
    return [message_id(*row) for row in rows]


@pytest.mark.parametrize("at_once", [30, 3])
async def test_what_failed_long_ago_and_is_replayed_onto_an_endpoint_that_is_down_opens_its_breaker(
    quiet_house: House, receiver: Receiver, sink: WebhookSink, at_once: int
) -> None:
    epoch = await take(quiet_house)
    waiting = await found_out(quiet_house, receiver, sink, epoch, 30)
    receiver.answer = lambda event: 503
    opened = "SELECT consecutive_failures FROM outbox_endpoints WHERE open_until IS NOT NULL"
    while waiting and not await quiet_house.sql(opened):
        for each in waiting[:at_once]:
            await decide(quiet_house, each, "replay")
        del waiting[:at_once]
        await pump(quiet_house, sink, epoch)
    for each in waiting:
        await decide(quiet_house, each, "replay")
    assert await quiet_house.sql(opened) == [(1,)]
    counted = await quiet_house.sql("SELECT count(*) FROM outbox_failures WHERE attempts > 0")
    assert counted[0][0] < SUSPECT_LANES
    receiver.answer = lambda event: 200
    while await pump(quiet_house, sink, epoch):
        pass
    assert len(receiver.accepted) >= 1 + 30 - counted[0][0]


async def test_a_pump_that_is_told_to_stop_looks_for_no_further_probe(
    quiet_house: House, receiver: Receiver, sink: WebhookSink
) -> None:
    epoch = await take(quiet_house)
    await found_out(quiet_house, receiver, sink, epoch, 1)
    await quiet_house.sql("""
        INSERT INTO outbox_messages (shard, endpoint_id, position, event_position, lane)
        SELECT shard, endpoint_id, position + n, event_position, lane FROM outbox_failures, generate_series(1, 5000) n
    """)
    await quiet_house.sql("UPDATE outbox_endpoints SET open_until = now() WHERE name = 'shop'")
    async with quiet_house.database.read() as connection:
        [endpoint] = await relay.ready_endpoints(connection, SHARD)
    left = "SELECT count(*) FROM outbox_messages"
    stopped = Pump(quiet_house.database, sink, endpoint, SHARD, epoch)
    stopped.stop()
    await stopped.run()
    assert (await quiet_house.sql(left))[0][0] > 0
    await Pump(quiet_house.database, sink, endpoint, SHARD, epoch).run()
    assert await quiet_house.sql(left) == [(0,)]


LOCKS = {
    "endpoint": "SELECT FROM outbox_endpoints WHERE name = 'shop' FOR UPDATE",
    "shard": "SELECT FROM outbox_shards FOR UPDATE",
    "failing message": "SELECT FROM outbox_failures FOR UPDATE",
}


async def waits(house: House) -> bool:
    """Somebody waits for a lock."""
    return bool((await house.sql("SELECT count(*) FROM pg_locks WHERE NOT granted"))[0][0])


async def lock(connection: AsyncConnection, what: str, wait: str = "") -> None:
    await connection.execute(text(f"{LOCKS[what]} {wait}"))


async def test_a_pump_that_opens_the_breaker_locks_the_endpoint_before_its_shard(
    quiet_house: House, receiver: Receiver, sink: WebhookSink
) -> None:
    receiver.answer = lambda event: 401
    await quiet_house.webhook("shop", receiver.url)
    await happen(quiet_house, "o", 1)
    epoch = await take(quiet_house)

    async def somebody_has_the_endpoint(connection: AsyncConnection) -> asyncio.Task[bool]:
        await lock(connection, "endpoint")
        pumping = asyncio.create_task(pump(quiet_house, sink, epoch))
        await eventually(lambda: waits(quiet_house))
        await lock(connection, "shard", "NOWAIT")
        return pumping

    assert await (await quiet_house.database.transact(somebody_has_the_endpoint))
    assert await quiet_house.sql("SELECT consecutive_failures FROM outbox_endpoints WHERE name = 'shop'") == [(1,)]


@pytest.mark.parametrize(("held", "free"), [*itertools.pairwise(LOCKS)])
@pytest.mark.parametrize("passes", [True, False])
async def test_the_end_of_a_probe_by_a_retry_locks_endpoint_shard_and_message_in_this_order(
    quiet_house: House, held: str, free: str, passes: bool
) -> None:
    await quiet_house.webhook("shop", "http://127.0.0.1:9/")
    await happen(quiet_house, "o", 1)
    [(position, endpoint_id)] = await quiet_house.sql("""
        WITH gone AS (DELETE FROM outbox_messages RETURNING *)
        INSERT INTO outbox_failures (endpoint_id, position, event_position, shard, lane, event_type, status, attempts,
            error_class, last_error, fingerprint)
        SELECT endpoint_id, position, event_position, shard, lane, 'waybill.order.reserved', 'RETRYING', 1, 'event',
            'HTTP 400', 'f' FROM gone RETURNING position, endpoint_id
    """)
    await quiet_house.sql("UPDATE outbox_endpoints SET open_until = now() WHERE name = 'shop'")
    database = quiet_house.database
    begun = await database.transact(lambda c: retries.begin_retry(c, position, endpoint_id))
    assert begun is not None
    message, endpoint = begun.message, begun.endpoint
    assert message is not None
    assert endpoint is not None

    async def end(connection: AsyncConnection) -> None:
        if passes:
            await retries.retry_delivered(connection, message, endpoint)
        else:
            await retries.retry_failed(connection, message, endpoint, ErrorClass.ENDPOINT, "no", 9.0, in_doubt=False)

    async def somebody_has_it(connection: AsyncConnection) -> asyncio.Task[None]:
        await lock(connection, held)
        ending = asyncio.create_task(database.transact(end))
        await eventually(lambda: waits(quiet_house))
        await lock(connection, free, "NOWAIT")
        return ending

    await (await database.transact(somebody_has_it))
    [(status,)] = await quiet_house.sql("SELECT status FROM outbox_failures")
    assert status == ("DELIVERED" if passes else "RETRYING")
