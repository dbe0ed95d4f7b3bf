"""What an endpoint is tried with whose breaker is open: each time another lane, however many of the oldest fail."""

from __future__ import annotations

import itertools

import pytest

from db.outbox import probes, relay, retries
from db.outbox.probes import LOOK_AHEAD, Probe
from db.outbox.relay import StaleEpoch
from domain.outbox import Endpoint
from tests.db.outbox.outboxes import LANES, SHARD, A, B, C, Outbox

DUE = "UPDATE outbox_endpoints SET open_until = now() WHERE name = 'shop'"


async def begin(outbox: Outbox, epoch: int) -> Probe | None:
    """The next probe; the last one, if there was one, failed, and its pause is over."""
    await outbox.shop.sql(DUE)
    async with outbox.shop.database.read() as connection:
        [endpoint] = await relay.ready_endpoints(connection, SHARD)
    return await outbox.shop.database.transact(lambda c: probes.begin_probe(c, SHARD, endpoint, epoch))


async def probed(outbox: Outbox, epoch: int, times: int) -> list[str]:
    """The lanes of so many probes, one after the other."""
    lanes = []
    for _ in range(times):
        probe = await begin(outbox, epoch)
        assert probe is not None
        assert probe.until is not None
        lanes.append(probe.claimed.message.lane.removeprefix("order:"))
    return lanes


async def test_every_lane_has_its_turn_before_one_has_a_second(outbox: Outbox) -> None:
    for order_id in LANES:
        await outbox.happen(order_id, "order.reserved", "order.confirmed")
    epoch = await outbox.take()
    first = await probed(outbox, epoch, len(LANES))
    assert sorted(first) == sorted(LANES)
    assert await probed(outbox, epoch, len(LANES)) == first
    assert await probed(outbox, epoch, 2) == first[:2]
    # What is next is gone, what was last is gone too: it goes on behind them.
    gone = "DELETE FROM outbox_messages WHERE lane = ANY(CAST(:lanes AS text[]))"
    await outbox.shop.sql(gone, lanes=[f"order:{lane}" for lane in first[1:3]])
    assert await probed(outbox, epoch, len(LANES) - 2) == [*first[3:], first[0]]


async def test_of_a_lane_only_the_first_message_goes_out_and_leaves_a_trace(outbox: Outbox) -> None:
    first, _ = await outbox.happen(A, "order.reserved", "order.confirmed")
    epoch = await outbox.take()
    probe = await begin(outbox, epoch)
    assert probe is not None
    assert (probe.claimed.message.position, probe.claimed.message.event_type) == (first, "waybill.order.reserved")
    assert await outbox.shop.sql("SELECT epoch, positions FROM outbox_claims") == [(epoch, [first])]


async def test_one_shards_probes_do_not_skip_another_shards_lanes(outbox: Outbox) -> None:
    for order_id in LANES[:4]:
        await outbox.happen(order_id, "order.reserved")
    epoch = await outbox.take()
    [first] = await probed(outbox, epoch, 1)
    other = (
        "INSERT INTO outbox_claims (shard, endpoint_id, epoch, positions, probe_cursor) VALUES (:s, :e, 1, '{}', :c)"
    )
    await outbox.shop.sql(other, s=(SHARD + 1) % 4, e=outbox.endpoint_id, c=2**62)
    assert sorted([first, *await probed(outbox, epoch, 3)]) == sorted(LANES[:4])


async def test_while_somebody_tries_the_endpoint_nobody_else_does(outbox: Outbox) -> None:
    await outbox.happen(A, "order.reserved")
    epoch = await outbox.take()
    await outbox.shop.sql(DUE)
    async with outbox.shop.database.read() as connection:
        [endpoint] = await relay.ready_endpoints(connection, SHARD)

    async def try_it(seen: Endpoint) -> Probe | None:
        return await outbox.shop.database.transact(lambda c: probes.begin_probe(c, SHARD, seen, epoch))

    assert await try_it(endpoint) is not None
    assert await try_it(endpoint) is None
    await outbox.shop.sql(DUE)
    await outbox.take("successor")
    with pytest.raises(StaleEpoch):
        await try_it(endpoint)


async def test_a_lane_that_a_failing_message_blocks_is_no_probe(outbox: Outbox) -> None:
    _, _, parked = await outbox.blocked(A, "order.reserved", "order.confirmed")
    epoch, _, parked_too = await outbox.blocked(C, "order.reserved", "order.confirmed")
    await outbox.shop.sql("""
        WITH back AS (DELETE FROM outbox_parked RETURNING shard, endpoint_id, position, event_position, lane)
        INSERT INTO outbox_messages (shard, endpoint_id, position, event_position, lane) SELECT * FROM back""")
    blocked = await begin(outbox, epoch)
    assert blocked is not None
    assert blocked.until is None
    assert await outbox.places([*parked, *parked_too]) == ["parked", "parked"]  # in one go
    assert await outbox.shop.value("SELECT open_until <= now() FROM outbox_endpoints WHERE name = 'shop'")
    await outbox.happen(B, "order.reserved")
    assert await probed(outbox, epoch, 2) == [B, B]
    await outbox.shop.sql("DELETE FROM outbox_messages WHERE lane = :lane", lane=f"order:{B}")
    await outbox.shop.sql(DUE)
    async with outbox.shop.database.read() as connection:
        assert await relay.ready_endpoints(connection, SHARD) == []


async def test_a_probe_reads_no_more_of_a_backlog_than_a_pump_would(outbox: Outbox) -> None:
    await outbox.shop.sql(
        """
        WITH logged AS (
            INSERT INTO outbox_events (event_id, event_type, subject, lane, shard, data, occurred_at)
            SELECT gen_random_uuid(), 'waybill.order.reserved', 'o', 'order:' || n, :shard, '{}', now()
            FROM generate_series(1, CAST(:count AS int)) n RETURNING position, lane
        )
        INSERT INTO outbox_messages (shard, endpoint_id, position, event_position, lane)
        SELECT :shard, :endpoint, position, position, lane FROM logged
        """,
        shard=SHARD,
        endpoint=outbox.endpoint_id,
        count=LOOK_AHEAD + 4000,
    )
    epoch = await outbox.take()
    await outbox.shop.sql(DUE)
    async with outbox.shop.database.read() as connection:
        [endpoint] = await relay.ready_endpoints(connection, SHARD)
    for analyzed in (False, True):
        if analyzed:
            await outbox.shop.sql("ANALYZE outbox_messages, outbox_events")
            await outbox.shop.sql(DUE)

        async def read(connection: object) -> dict[str, tuple[int, int]]:
            assert await probes.begin_probe(connection, SHARD, endpoint, epoch) is not None  # type: ignore[arg-type]
            rows = await connection.exec_driver_sql(  # type: ignore[attr-defined]
                "SELECT relname, seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname LIKE 'outbox%'"
            )
            return {name: (scanned, fetched) for name, scanned, fetched in rows}

        found = await outbox.shop.database.transact(read)
        scanned, fetched = found["outbox_messages"]
        assert scanned == 0
        assert LOOK_AHEAD <= fetched <= LOOK_AHEAD + 1
        assert found["outbox_events"] == (0, 1)


async def test_a_relay_that_dies_in_a_probe_slows_nothing_down_but_is_counted(outbox: Outbox) -> None:
    for order_id in (A, B, C):
        await outbox.happen(order_id, "order.reserved")
    epoch = await outbox.take()
    [lane] = await probed(outbox, epoch, 1)
    for deaths in itertools.count(1):
        epoch = await outbox.take()
        await outbox.shop.database.transact(lambda c, e=epoch: retries.fail_suspects(c, SHARD, e))  # type: ignore[misc]
        claim = await outbox.shop.sql("SELECT narrowed_to, interruptions FROM outbox_claims WHERE shard = 2")
        if deaths == 3:
            break
        assert claim == [(None, deaths)]
        await outbox.shop.sql("DELETE FROM outbox_messages WHERE lane <> :lane", lane=f"order:{lane}")
        assert await probed(outbox, epoch, 1) == [lane]
    assert await outbox.shop.sql("SELECT status, lane FROM outbox_failures") == [("RETRYING", f"order:{lane}")]
    assert await outbox.shop.value("SELECT count(*) FROM outbox_attempts WHERE outcome = 'interrupted'") == 3
