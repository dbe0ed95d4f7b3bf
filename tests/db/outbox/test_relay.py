"""What a relay does to the rows: nothing is skipped, nothing is ended twice, and nobody late ends anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import create_engine
from db.outbox import relay, retries, settle
from db.outbox.relay import Claimed, StaleEpoch
from db.outbox.settle import Delivered
from db.outbox.write import write_events
from domain.outbox import ErrorClass, EventType, Message, order_event
from tests.db.outbox.outboxes import LANES, SHARD, A, B, C, Outbox


def positions_of(claimed: list[Claimed]) -> list[int]:
    return [each.message.position for each in claimed]


async def test_delivered_messages_are_finished_and_counted(outbox: Outbox) -> None:
    positions = await outbox.happen(A, "order.reserved", "order.confirmed")
    epoch = await outbox.take()
    claimed = await outbox.claim(epoch)
    assert positions_of(claimed) == positions
    assert [(each.message.event_type, each.message.attempts) for each in claimed] == [
        ("waybill.order.reserved", 0),
        ("waybill.order.confirmed", 0),
    ]
    await outbox.settle(epoch, claimed)
    assert await outbox.places(positions) == ["DELIVERED", "DELIVERED"]
    assert await outbox.dispatched() == 2
    assert await outbox.shop.sql("SELECT DISTINCT duration_ms FROM outbox_finished") == [(12.5,)]
    assert await outbox.claim(epoch) == []


async def test_what_is_in_flight_is_not_claimed_again(outbox: Outbox) -> None:
    positions = await outbox.happen(A, "order.reserved", "order.confirmed", "delivery.requested")
    epoch = await outbox.take()
    assert positions_of(await outbox.claim(epoch, limit=2)) == positions[:2]
    assert positions_of(await outbox.claim(epoch, in_flight=positions[:2])) == positions[2:]
    assert await outbox.shop.value("SELECT positions FROM outbox_claims") == positions


async def test_a_claim_is_recorded_before_anything_is_sent(outbox: Outbox) -> None:
    positions = await outbox.happen(A, "order.reserved")
    epoch = await outbox.take()
    await outbox.claim(epoch)
    assert await outbox.shop.sql("SELECT shard, endpoint_id, epoch, positions FROM outbox_claims") == [
        (SHARD, outbox.endpoint_id, epoch, positions)
    ]


async def test_nobody_takes_a_shard_that_does_not_exist(outbox: Outbox) -> None:
    with pytest.raises(LookupError):
        await outbox.shop.database.transact(lambda connection: relay.take_shard(connection, 99, "worker-1"))


async def test_each_owner_of_a_shard_has_a_higher_epoch(outbox: Outbox) -> None:
    assert [await outbox.take(f"worker-{number}") for number in range(3)] == [1, 2, 3]
    assert await outbox.shop.sql("SELECT shard, owner FROM outbox_shards WHERE owner IS NOT NULL") == [
        (SHARD, "worker-2")
    ]


# --- the fence

Late = Callable[[Outbox, int, Claimed], Awaitable[None]]


async def late_settle(outbox: Outbox, epoch: int, claimed: Claimed) -> None:
    await outbox.settle(epoch, [claimed])


async def late_failure(outbox: Outbox, epoch: int, claimed: Claimed) -> None:
    await outbox.fail(epoch, claimed)


async def late_count(outbox: Outbox, epoch: int, claimed: Claimed) -> None:
    await outbox.shop.database.transact(
        lambda connection: settle.count_error(connection, SHARD, epoch, ErrorClass.ENDPOINT)
    )


async def late_check(outbox: Outbox, epoch: int, claimed: Claimed) -> None:
    async with outbox.shop.database.read() as connection:
        await relay.check_epoch(connection, SHARD, epoch)


@pytest.mark.parametrize("end", [late_settle, late_failure, late_count, late_check], ids=lambda end: end.__name__)
async def test_a_relay_that_wakes_up_late_changes_nothing(outbox: Outbox, end: Late) -> None:
    await outbox.happen(A, "order.reserved")
    stale = await outbox.take("frozen")
    (claimed,) = await outbox.claim(stale)
    await outbox.take("successor")
    before = await outbox.shop.contents()
    with pytest.raises(StaleEpoch):
        await end(outbox, stale, claimed)
    assert await outbox.claim(stale) == []
    assert await outbox.shop.contents() == before


async def test_what_nobody_saw_the_end_of_is_logged_as_interrupted(outbox: Outbox) -> None:
    done, open_ = await outbox.happen(A, "order.reserved", "order.confirmed")
    (unclaimed,) = await outbox.happen(B, "order.reserved")
    epoch = await outbox.take("worker-1")
    claimed = await outbox.claim(epoch, limit=2)
    await outbox.settle(epoch, claimed[:1])
    await outbox.take("worker-2")
    logged = await outbox.shop.sql("SELECT position, outcome, error_class FROM outbox_attempts")
    assert logged == [(open_, "interrupted", None)]
    assert await outbox.places([done, open_, unclaimed]) == ["DELIVERED", "ready", "ready"]
    await outbox.take("worker-3")
    assert await outbox.shop.value("SELECT count(*) FROM outbox_attempts") == 1


async def die(outbox: Outbox) -> list[int]:
    """A relay claims what it may, and dies while it sends; answers what it had claimed."""
    epoch = await outbox.take()
    await outbox.shop.database.transact(lambda connection: retries.fail_suspects(connection, SHARD, epoch))
    return positions_of(await outbox.claim(epoch))


async def test_a_message_that_kills_relay_after_relay_is_found_out_and_the_others_are_not_blamed(
    outbox: Outbox,
) -> None:
    positions = [(await outbox.happen(order_id, *("order.reserved",) * 5))[0] for order_id in LANES]
    sizes = [len(await die(outbox)) for _ in range(6)]
    assert sizes == [30, 3, 1, 1, 1, 29]  # ever fewer at a time, until one is left alone
    assert await outbox.places(positions[:2]) == ["RETRYING", "ready"]
    assert await outbox.shop.sql("SELECT position, attempts, error_class FROM outbox_failures") == [
        (positions[0], 3, "unknown")
    ]
    assert await outbox.shop.value("SELECT sum(errors_unknown) FROM outbox_shards") == 1
    await outbox.replay(positions[0])
    await die(outbox)
    assert await outbox.places(positions[:1]) == ["ready"], "sent again, it is suspected anew"


async def test_after_a_relay_died_what_it_was_sending_goes_in_small_batches_and_then_all_is_as_before(
    outbox: Outbox,
) -> None:
    for order_id in LANES:
        await outbox.happen(order_id, "order.reserved")
    assert len(await die(outbox)) == len(LANES)
    (late,) = await outbox.happen("o-late", "order.reserved")
    await outbox.shop.sql("UPDATE outbox_messages SET shard = :shard", shard=SHARD)
    epoch = await outbox.take()
    for _ in LANES:
        (claimed,) = await outbox.claim(epoch)
        assert await outbox.claim(epoch, in_flight=[claimed.message.position]) == []
        await outbox.settle(epoch, [claimed])
    assert positions_of(await outbox.claim(epoch)) == [late]
    assert await outbox.shop.value("SELECT narrowed_to FROM outbox_claims") == 1
    await outbox.shop.database.transact(lambda c: relay.drop_claim(c, SHARD, outbox.endpoint_id, epoch))
    assert await outbox.shop.value("SELECT narrowed_to FROM outbox_claims") is None
    assert await outbox.shop.value("SELECT count(*) FROM outbox_failures") == 0


# --- presence means pending


async def test_an_event_that_commits_late_is_not_skipped(outbox: Outbox, database_url: str) -> None:
    engine = create_engine(database_url, pool_size=1)
    epoch = await outbox.take()
    try:
        async with engine.begin() as slow:
            await write_events(slow, [order_event(EventType.ORDER_RESERVED, A, A, {})])
            (later,) = await outbox.happen(B, "order.reserved")
            claimed = await outbox.claim(epoch)
            assert positions_of(claimed) == [later]
            await outbox.settle(epoch, claimed)
    finally:
        await engine.dispose()
    (claimed_late,) = await outbox.claim(epoch)
    assert claimed_late.message.position < later
    assert claimed_late.message.lane == f"order:{A}"


async def test_ready_endpoints_are_those_that_can_be_sent_to_and_have_something(outbox: Outbox) -> None:
    names = {"asleep": "enabled = false", "open": "open_until = now() + interval '1 hour'", "due": "open_until = now()"}
    for name, change in names.items():
        await outbox.webhook(name)
        await outbox.shop.sql(f"UPDATE outbox_endpoints SET {change} WHERE name = '{name}'")
    await outbox.happen(A, "order.reserved")
    await outbox.webhook("nothing yet")
    async with outbox.shop.database.read() as connection:
        ready = await relay.ready_endpoints(connection, SHARD)
        elsewhere = await relay.ready_endpoints(connection, (SHARD + 1) % 4)
    assert {endpoint.name: endpoint.probing for endpoint in ready} == {"shop": False, "due": True}
    assert elsewhere == []


# --- failures and the lanes behind them


async def test_a_failing_message_blocks_its_own_lane_and_no_other(outbox: Outbox) -> None:
    bad, behind = await outbox.happen(A, "order.reserved", "order.confirmed")
    (other,) = await outbox.happen(B, "order.reserved")
    epoch = await outbox.take()
    await outbox.fail(epoch, (await outbox.claim(epoch))[0], delay_seconds=60.0)
    claimed = await outbox.claim(epoch)
    assert [(each.message.position, each.lane_blocked) for each in claimed] == [(behind, True), (other, False)]
    await outbox.park([each.message for each in claimed])
    assert await outbox.places([bad, behind, other]) == ["RETRYING", "parked", "ready"]
    attempts = await outbox.shop.sql("SELECT position, outcome, error_class, error FROM outbox_attempts")
    assert attempts == [(bad, "failed", "event", "HTTP 400 'no'")]


async def test_a_new_event_of_a_blocked_lane_waits_aside_too(outbox: Outbox) -> None:
    epoch, _, parked = await outbox.blocked(A, "order.reserved", "order.confirmed")
    new = await outbox.happen(A, "order.cancelled")
    claimed = await outbox.claim(epoch)
    assert [each.lane_blocked for each in claimed] == [True]
    await outbox.park([each.message for each in claimed])
    assert await outbox.places([*parked, *new]) == ["parked", "parked"]


async def test_a_long_lane_is_put_aside_at_once_and_no_other_with_it(outbox: Outbox) -> None:
    epoch, _, _ = await outbox.blocked(A, "order.reserved")
    long = await outbox.happen(A, *("order.confirmed",) * 30)
    other = await outbox.happen(B, "order.reserved")
    more = await outbox.happen(A, "order.cancelled")
    await outbox.park([each.message for each in await outbox.claim(epoch) if each.lane_blocked])
    assert set(await outbox.places([*long, *more])) == {"parked"}
    assert positions_of(await outbox.claim(epoch)) == other


async def test_nothing_is_parked_in_a_lane_that_is_free(outbox: Outbox) -> None:
    positions = await outbox.happen(A, "order.reserved", "order.confirmed")
    epoch = await outbox.take()
    claimed = await outbox.claim(epoch)
    before = await outbox.shop.contents()
    await outbox.park([each.message for each in claimed])
    await outbox.park([])
    assert await outbox.shop.contents() == before
    assert await outbox.places(positions) == ["ready", "ready"]


async def test_nothing_is_parked_behind_a_message_that_was_just_freed(outbox: Outbox) -> None:
    bad, behind = await outbox.happen(A, "order.reserved", "order.confirmed")
    epoch = await outbox.take()
    await outbox.fail(epoch, (await outbox.claim(epoch))[0], delay_seconds=None)
    seen_blocked = await outbox.claim(epoch)
    await outbox.ignore(bad)
    await outbox.park([each.message for each in seen_blocked])
    assert await outbox.places([bad, behind]) == ["IGNORED", "ready"]


@pytest.mark.parametrize(("delay_seconds", "status", "failed"), [(3.0, "RETRYING", 0), (None, "FAILED", 1)])
@pytest.mark.parametrize("error_class", [ErrorClass.EVENT, ErrorClass.UNKNOWN])
async def test_failures_are_counted_by_class(
    outbox: Outbox, error_class: ErrorClass, delay_seconds: float | None, status: str, failed: int
) -> None:
    positions = await outbox.happen(A, "order.reserved")
    epoch = await outbox.take()
    (claimed,) = await outbox.claim(epoch)
    await outbox.fail(epoch, claimed, error_class=error_class, delay_seconds=delay_seconds)
    assert await outbox.places(positions) == [status]
    counters = await outbox.shop.sql(
        f"SELECT sum(errors_{error_class}), sum(errors_event + errors_unknown + errors_endpoint),"
        " sum(failed_transitions), sum(dispatched) FROM outbox_shards"
    )
    assert counters == [(1, 1, failed, 0)]
    assert await outbox.shop.sql("SELECT attempts, error_class, next_attempt_at IS NULL FROM outbox_failures") == [
        (1, error_class, failed == 1)
    ]


async def test_a_message_that_passes_after_its_replay_is_delivered_and_no_longer_failing(outbox: Outbox) -> None:
    epoch, failed, parked = await outbox.blocked(A, "order.reserved", "order.confirmed")
    await outbox.replay(failed[0])
    claimed = await outbox.claim(epoch)
    assert [each.failed_before for each in claimed] == [True, False]
    assert {each.lane_blocked for each in claimed} == {False}
    await outbox.settle(epoch, claimed)
    assert await outbox.places([*failed, *parked]) == ["DELIVERED", "DELIVERED"]
    assert await outbox.shop.sql("SELECT status, next_attempt_at FROM outbox_failures") == [("DELIVERED", None)]


async def test_a_message_that_fails_after_its_replay_starts_its_tries_anew(outbox: Outbox) -> None:
    epoch, failed, _ = await outbox.blocked(A, "order.reserved")
    await outbox.shop.sql("UPDATE outbox_failures SET attempts = 3, workflow_started_at = now()")
    await outbox.replay(failed[0])
    (claimed,) = await outbox.claim(epoch)
    assert claimed.message.attempts == 0
    await outbox.fail(epoch, claimed, delay_seconds=3.0)
    assert await outbox.shop.sql("SELECT status, attempts, workflow_started_at FROM outbox_failures") == [
        ("RETRYING", 1, None)
    ]


# --- whose fault it is, and the breaker


async def passes(outbox: Outbox, message: Message, seconds: float = 60.0) -> bool:
    async with outbox.shop.database.read() as connection:
        return await settle.others_pass(connection, outbox.endpoint_id, message, seconds)


async def test_another_lanes_success_is_evidence_for_a_while(outbox: Outbox) -> None:
    for lane in (A, B, C):
        await outbox.happen(lane, "order.reserved")
    epoch = await outbox.take()
    claimed = await outbox.claim(epoch)
    a, b, c = (each.message for each in claimed)
    assert not await passes(outbox, a)
    await outbox.settle(epoch, claimed[:1])
    assert [await passes(outbox, each) for each in (a, b, c)] == [False, True, True]
    await outbox.shop.sql("UPDATE outbox_claims SET passed_at = now() - interval '2 minutes'")
    assert not await passes(outbox, b)
    assert await passes(outbox, b, seconds=600.0)
    other = Outbox(outbox.shop, await outbox.webhook("other"))
    assert not await passes(other, b, seconds=600.0)


async def test_another_lanes_success_is_evidence_for_as_long_as_it_is_newer_than_the_last_failure(
    outbox: Outbox,
) -> None:
    for lane in (A, B):
        await outbox.happen(lane, "order.reserved")
    epoch = await outbox.take()
    claimed = await outbox.claim(epoch)
    a, b = (each.message for each in claimed)
    database = outbox.shop.database
    await database.transact(
        lambda c: settle.log_attempt(c, outbox.endpoint_id, b, ErrorClass.ENDPOINT, "HTTP 500", in_doubt=True)
    )
    assert not await passes(outbox, b, seconds=0.0)
    await outbox.settle(epoch, claimed[:1])
    await outbox.shop.sql("UPDATE outbox_claims SET passed_at = now() - interval '2 hours'")
    await outbox.shop.sql("UPDATE outbox_attempts SET at = now() - interval '3 hours'")
    assert await passes(outbox, b, seconds=0.0)
    assert not await passes(outbox, a, seconds=0.0)
    await outbox.shop.sql("UPDATE outbox_attempts SET at = now() - interval '1 hour'")
    assert not await passes(outbox, b)


async def test_a_batch_reads_its_own_rows_only_however_many_wait(outbox: Outbox) -> None:
    await outbox.shop.sql(
        """
        WITH logged AS (
            INSERT INTO outbox_events (event_id, event_type, subject, lane, shard, data, occurred_at)
            SELECT gen_random_uuid(), 'waybill.order.reserved', n, 'order:' || n, :shard, '{}', now()
            FROM generate_series(1, 20000) n RETURNING position, lane
        )
        INSERT INTO outbox_messages (shard, endpoint_id, position, event_position, lane)
        SELECT :shard, endpoint_id, position, position, lane
        FROM logged CROSS JOIN unnest(CAST(:endpoints AS int[])) AS e(endpoint_id)
        """,
        shard=SHARD,
        endpoints=[outbox.endpoint_id, outbox.endpoint_id + 1000],
    )

    async def carry(connection: AsyncConnection) -> list[Row[Any]]:
        epoch = await relay.take_shard(connection, SHARD, "worker-1")
        for _ in range(7):  # more often than PostgreSQL tries plans made for the very values
            claimed = await relay.claim(connection, SHARD, outbox.endpoint_id, epoch, relay.Window(look_ahead=500))
            assert len(claimed) == 200
            delivered = [Delivered(each, 12.5) for each in claimed]
            await settle.settle(connection, SHARD, outbox.endpoint_id, epoch, delivered)
        reads = text("""
            SELECT relname, seq_scan, idx_tup_fetch FROM pg_stat_xact_user_tables
            WHERE relname IN ('outbox_messages', 'outbox_events', 'outbox_finished') ORDER BY relname
        """)
        return list((await connection.execute(reads)).all())

    events, finished, messages = await outbox.shop.database.transact(carry)
    assert [(row.relname, row.seq_scan) for row in (events, finished, messages)] == [
        ("outbox_events", 0),
        ("outbox_finished", 0),
        ("outbox_messages", 0),
    ]
    assert events.idx_tup_fetch == 7 * 200
    assert messages.idx_tup_fetch <= 7 * (500 + 200)


async def test_who_lost_the_shard_says_nothing_about_what_the_next_one_sends(outbox: Outbox) -> None:
    await outbox.happen(A, "order.reserved")
    stale = await outbox.take("frozen")
    await outbox.claim(await outbox.take("successor"))
    before = await outbox.shop.contents()
    await outbox.shop.database.transact(lambda c: relay.abandon_claim(c, SHARD, outbox.endpoint_id, stale))
    assert await outbox.shop.contents() == before


async def test_a_message_at_which_relays_ended_now_and_then_is_not_blamed_for_it(outbox: Outbox) -> None:
    (position,) = await outbox.happen(A, "order.reserved")
    for _ in range(4):
        assert await die(outbox) == [position]
        epoch = await outbox.take()
        await outbox.claim(epoch)
        await outbox.shop.database.transact(lambda c, e=epoch: relay.drop_claim(c, SHARD, outbox.endpoint_id, e))  # type: ignore[misc]
    await die(outbox)
    assert await outbox.places([position]) == ["ready"]


async def test_what_went_back_and_then_left_its_lane_fails_in_the_lane_that_it_is_in(outbox: Outbox) -> None:
    offered, confirmed = await outbox.happen(A, "delivery.offered", "order.confirmed")
    epoch = await outbox.take()
    first, second = await outbox.claim(epoch)
    await outbox.fail(epoch, first, delay_seconds=None)
    await outbox.park([second.message])
    await outbox.replay(offered)
    await outbox.webhook("shop", unordered_types=["waybill.delivery.offered"])
    for claimed in reversed(await outbox.claim(epoch)):
        await outbox.fail(epoch, claimed, delay_seconds=None)
    failed = await outbox.shop.sql("SELECT position, lane FROM outbox_failures ORDER BY position")
    assert failed == [(offered, f"event:{offered}"), (confirmed, f"order:{A}")]
