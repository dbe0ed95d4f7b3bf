"""One relay's activity: how it ends, and that two of one shard do not disturb each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from temporalio.testing import ActivityEnvironment

from activities.outbox import OutboxActivities
from db.outbox.write import write_events
from domain.outbox import EventType, SinkKind, order_event, shard_of
from sinks.webhook import WebhookSink
from tests.activities.lanes import PatientReceiver
from tests.houses import House
from tests.receivers import Receiver
from tests.waiting import eventually

ORDER = "o-1"
SHARD = shard_of(f"order:{ORDER}")


@pytest_asyncio.fixture
async def outbox(quiet_house: House) -> AsyncIterator[OutboxActivities]:
    """The relays of a worker that runs nothing by itself."""
    house, sink = quiet_house, WebhookSink(allow_private=True)
    yield OutboxActivities(house.database, house.temporal, house.names, {SinkKind.WEBHOOK: sink}, worker_id="worker-1")
    await sink.close()


async def happen(house: House) -> None:
    """One event of the order."""
    event = order_event(EventType.ORDER_RESERVED, ORDER, ORDER, {"status": "RESERVED"})
    await house.database.transact(lambda connection: write_events(connection, [event]))


async def test_a_relay_that_ends_keeps_its_shard_until_what_it_was_sending_is_settled(
    quiet_house: House, outbox: OutboxActivities
) -> None:
    environment, beats = ActivityEnvironment(), list[object]()
    environment.on_heartbeat = lambda *_: beats.append(None)
    async with PatientReceiver() as receiver:
        receiver.held[ORDER] = asyncio.Event()
        await quiet_house.webhook("shop", receiver.url)
        await happen(quiet_house)
        carrying = asyncio.create_task(environment.run(outbox.relay, SHARD))

        async def is_being_sent() -> bool:
            return receiver.arrived == [ORDER]

        await eventually(is_being_sent)
        environment.cancel()
        before = len(beats)

        async def beats_on() -> bool:
            return len(beats) > before

        await eventually(beats_on)
        receiver.held[ORDER].set()
        with pytest.raises(asyncio.CancelledError):
            await carrying
    assert await quiet_house.sql("SELECT status FROM outbox_finished") == [("DELIVERED",)]


async def test_the_late_end_of_a_relay_leaves_the_one_that_took_its_shard_in_peace(
    quiet_house: House, outbox: OutboxActivities, receiver: Receiver
) -> None:
    await quiet_house.webhook("shop", receiver.url)

    async def carry(epoch: int) -> tuple[ActivityEnvironment, asyncio.Task[None]]:
        environment = ActivityEnvironment()
        carrying = asyncio.create_task(environment.run(outbox.relay, SHARD))

        async def has_the_shard() -> bool:
            rows = await quiet_house.sql("SELECT epoch FROM outbox_shards WHERE shard = :shard", shard=SHARD)
            return bool(rows == [(epoch,)])

        await eventually(has_the_shard)
        return environment, carrying

    frozen, late = await carry(1)
    successor, carrying = await carry(2)
    frozen.cancel()
    await asyncio.gather(late, return_exceptions=True)
    await happen(quiet_house)
    await receiver.got("order.reserved")
    successor.cancel()
    with pytest.raises(asyncio.CancelledError):
        await carrying
