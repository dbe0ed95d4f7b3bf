"""What a pump claims while it sends: nobody waits for others' slow lanes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from activities.outbox_pump import Pump
from db.outbox import relay
from db.outbox.write import write_events
from domain.outbox import Endpoint, EventType, Message, order_event, shard_of
from sinks import SendFailed
from tests.houses import House
from tests.waiting import eventually

SHARD = 2


class Gate:
    """A sink that takes some lanes' messages at once, and keeps others' until it is told how they end."""

    def __init__(self, *, slow: Callable[[Message], bool]) -> None:
        self._slow = slow
        self.taken: list[Message] = []
        self.kept: list[Message] = []
        self.opened = asyncio.Event()
        self.ends: SendFailed | None = None

    async def send(self, endpoint: Endpoint, message: Message) -> None:
        """Take a message, or keep it."""
        if self._slow(message):
            self.kept.append(message)
            await self.opened.wait()
            if self.ends:
                raise self.ends
        self.taken.append(message)


async def happen(house: House, prefix: str, lanes: int, each: int = 1) -> None:
    """So many events in each of so many lanes of the shard."""
    names = (f"{prefix}-{number}" for number in itertools.count())
    orders = list(itertools.islice((name for name in names if shard_of(f"order:{name}") == SHARD), lanes))
    for _ in range(each):
        events = [order_event(EventType.ORDER_RESERVED, name, name, {"status": "RESERVED"}) for name in orders]
        await house.database.transact(partial(write_events, events=events))


@asynccontextmanager
async def pumping(house: House, sink: Gate) -> AsyncIterator[tuple[Pump, asyncio.Task[None]]]:
    """A pump at work on the webhook `shop`."""
    epoch = await house.database.transact(lambda connection: relay.take_shard(connection, SHARD, "test"))
    async with house.database.read() as connection:
        [endpoint] = [each for each in await relay.ready_endpoints(connection, SHARD) if each.name == "shop"]
    pump = Pump(house.database, sink, endpoint, SHARD, epoch)
    task = asyncio.create_task(pump.run())
    try:
        yield pump, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def slow(message: Message) -> bool:
    return "slow" in message.lane


async def test_lanes_that_are_well_do_not_wait_for_any_number_of_slow_ones(quiet_house: House) -> None:
    await quiet_house.webhook("shop", "http://127.0.0.1:9/")
    await happen(quiet_house, "slow", lanes=40, each=20)
    sink = Gate(slow=slow)

    async def all_lanes_under_way() -> bool:
        return len(sink.kept) == 40

    async def healthy_taken() -> bool:
        return len(sink.taken) == 20

    async with pumping(quiet_house, sink) as (pump, _):
        await eventually(all_lanes_under_way)
        await happen(quiet_house, "healthy", lanes=20)
        pump.look()
        await eventually(healthy_taken, 3)


async def test_events_that_time_out_while_others_pass_are_to_blame_themselves(quiet_house: House) -> None:
    await quiet_house.webhook("shop", "http://127.0.0.1:9/")
    await happen(quiet_house, "slow", lanes=4, each=20)
    sink = Gate(slow=slow)
    sink.ends = SendFailed(None, "no answer within 10 s")

    async def all_lanes_under_way() -> bool:
        return len(sink.kept) == 4

    async def healthy_taken() -> bool:
        return len(sink.taken) == 20

    async with pumping(quiet_house, sink) as (pump, task):
        await eventually(all_lanes_under_way)
        await happen(quiet_house, "healthy", lanes=20)
        pump.look()
        await eventually(healthy_taken)
        sink.opened.set()
        await task
    rows = await quiet_house.sql("SELECT status, error_class FROM outbox_failures")
    assert rows == [("RETRYING", "unknown")] * 4
    [[open_until]] = await quiet_house.sql("SELECT open_until FROM outbox_endpoints WHERE name = 'shop'")
    assert open_until is None


async def test_what_was_delivered_is_settled_though_a_claim_fails(quiet_house: House) -> None:
    await quiet_house.webhook("shop", "http://127.0.0.1:9/")
    await happen(quiet_house, "fast", lanes=10)
    await happen(quiet_house, "slow", lanes=36)
    await quiet_house.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no more is claimed'; END $$"
    )
    await quiet_house.sql(
        "CREATE TRIGGER refuse BEFORE UPDATE OF positions ON outbox_claims FOR EACH ROW "
        "WHEN (cardinality(NEW.positions) > 0) EXECUTE FUNCTION refuse()"
    )
    sink = Gate(slow=slow)

    async def under_way() -> bool:
        return len(sink.kept) == 36

    async with pumping(quiet_house, sink) as (pump, task):
        await eventually(under_way)
        await happen(quiet_house, "more", lanes=1)
        pump.look()
        assert "no more is claimed" in str((await asyncio.gather(task, return_exceptions=True))[0])
    left = await quiet_house.sql(
        "SELECT lane FROM outbox_messages JOIN outbox_endpoints USING (endpoint_id) WHERE name = 'shop'"
    )
    assert not [lane for [lane] in left if "fast" in lane]
    assert len(left) == 37
