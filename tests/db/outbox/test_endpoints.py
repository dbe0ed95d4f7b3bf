"""Webhooks: from which moment they receive, how they change, and that they leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import create_engine
from db.outbox import endpoints, failures, lanes, relay
from db.outbox.endpoints import BeingDeleted
from db.outbox.lanes import Move
from db.outbox.write import write_events
from domain.outbox import EventType, order_event
from tests.db.outbox.outboxes import SHARD, A, B, C, Outbox
from tests.db.shops import Shop
from tests.waiting import eventually

TABLES = ("outbox_messages", "outbox_parked", "outbox_failures", "outbox_claims")


@asynccontextmanager
async def open_transaction(url: str) -> AsyncIterator[AsyncConnection]:
    """A transaction that stays open while the block runs, and commits at its end."""
    engine = create_engine(url, pool_size=1)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


async def waiting_for_a_lock(shop: Shop) -> bool:
    return bool(await shop.value("SELECT count(*) FROM pg_locks WHERE NOT granted"))


async def test_a_webhook_receives_exactly_what_is_committed_after_it_was_made(shop: Shop, database_url: str) -> None:
    outbox = Outbox(shop, 0)
    early = order_event(EventType.ORDER_RESERVED, A, A, {})
    async with open_transaction(database_url) as earlier:
        await write_events(earlier, [early])
        making = asyncio.create_task(outbox.webhook("late"))
        await eventually(lambda: waiting_for_a_lock(shop))
        assert not making.done()
        # Whoever writes an event while it is being made comes after it, and waits with it.
        behind = asyncio.create_task(outbox.happen(B, "order.reserved"))
        await eventually(lambda: two_wait(shop))
        assert not behind.done()
    endpoint_id = await making
    (position,) = await behind
    assert await shop.sql("SELECT endpoint_id, position FROM outbox_messages") == [(endpoint_id, position)]


async def two_wait(shop: Shop) -> bool:
    return bool(await shop.value("SELECT count(*) >= 2 FROM pg_locks WHERE NOT granted"))


async def test_a_changed_filter_holds_for_what_comes_after_it(outbox: Outbox) -> None:
    (first,) = await outbox.happen(A, "order.reserved")
    await outbox.webhook("shop", ["waybill.order.confirmed"])
    _, third = await outbox.happen(A, "order.cancelled", "order.confirmed")
    assert await outbox.shop.sql("SELECT position FROM outbox_messages ORDER BY 1") == [(first,), (third,)]


async def test_putting_a_webhook_again_keeps_its_secret_and_is_audited_only_if_it_changes(outbox: Outbox) -> None:
    shop = outbox.shop
    secret = await shop.value("SELECT secret FROM outbox_endpoints WHERE name = 'shop'")
    assert await outbox.webhook("shop") == outbox.endpoint_id
    assert await shop.value("SELECT count(*) FROM admin_actions") == 1
    assert await outbox.webhook("shop", enabled=False) == outbox.endpoint_id
    assert await shop.value("SELECT count(*) FROM admin_actions") == 2
    assert await shop.value("SELECT secret FROM outbox_endpoints WHERE name = 'shop'") == secret


async def test_no_webhook_takes_the_internal_sinks_place(shop: Shop) -> None:
    async with shop.database.read() as connection:
        assert await endpoints.get_webhook(connection, "workflow") is None
        assert await endpoints.list_webhooks(connection, None, 10) == []
    assert await delete(outbox=Outbox(shop, 0), name="workflow") is False
    assert await shop.value("SELECT count(*) FROM outbox_endpoints WHERE kind = 'workflow'") == 1


async def test_webhooks_are_listed_newest_first_page_by_page(shop: Shop) -> None:
    outbox = Outbox(shop, 0)
    for number in range(3):
        await outbox.webhook(f"w-{number}")
    async with shop.database.read() as connection:
        first = await endpoints.list_webhooks(connection, None, 2)
        second = await endpoints.list_webhooks(connection, first[-1].endpoint_id, 2)
    assert [row.name for row in (*first, *second)] == ["w-2", "w-1", "w-0"]
    assert not hasattr(first[0], "secret")


async def begin_deletion(outbox: Outbox, name: str = "shop", reason: str = "moved") -> int | None:
    return await outbox.shop.database.transact(
        lambda connection: endpoints.begin_deletion(connection, name, actor="admin", reason=reason)
    )


async def delete(outbox: Outbox, name: str = "shop") -> bool:
    endpoint_id = await begin_deletion(outbox, name)
    return endpoint_id is not None and await outbox.shop.database.transact(
        lambda connection: endpoints.end_deletion(connection, endpoint_id, 0, actor="admin", reason="moved")
    )


async def test_deleting_a_webhook_is_audited_when_it_begins_and_once_whoever_ends_it(outbox: Outbox) -> None:
    shop = outbox.shop
    await outbox.happen(A, "order.reserved")
    assert await begin_deletion(outbox) == outbox.endpoint_id
    audited = "SELECT actor, action, target, reason FROM admin_actions WHERE action LIKE 'webhook.delete%' ORDER BY at"
    begun = ("admin", "webhook.delete", "webhook:shop", "moved")
    assert await shop.sql(audited) == [begun]
    before = await shop.contents()
    assert await begin_deletion(outbox, reason="did it work?") == outbox.endpoint_id  # the first call broke off
    assert await shop.contents() == before
    ends = await asyncio.gather(*(delete(outbox) for _ in range(3)))
    assert sorted(ends) == [False, False, True]
    assert await shop.sql(audited) == [begun, ("admin", "webhook.deleted", "webhook:shop", "moved")]


async def test_nothing_else_becomes_of_a_webhook_that_is_being_deleted(outbox: Outbox) -> None:
    shop = outbox.shop
    await outbox.happen(A, "order.reserved")
    await begin_deletion(outbox)
    before = await shop.contents()
    with pytest.raises(BeingDeleted):
        await outbox.webhook("shop")
    with pytest.raises(BeingDeleted):
        await rotate(outbox, "whsec_new")
    with pytest.raises(BeingDeleted):
        await shop.database.transact(lambda c: endpoints.enable_webhook(c, "shop", actor="admin", reason=None))
    assert await shop.contents() == before
    async with shop.database.read() as connection:
        assert await relay.ready_endpoints(connection, SHARD) == []
        found = await endpoints.get_webhook(connection, "shop")
    assert found is not None
    assert (found.enabled, found.disabled_reason) == (False, "it is being deleted")


async def test_the_late_end_of_a_deletion_leaves_a_new_webhook_of_that_name_alone(outbox: Outbox) -> None:
    await begin_deletion(outbox)
    assert await delete(outbox)
    again = await outbox.webhook("shop")
    late = await outbox.shop.database.transact(
        lambda connection: endpoints.end_deletion(connection, outbox.endpoint_id, 0, actor="admin", reason="moved")
    )
    assert not late
    assert await outbox.webhook("shop") == again


async def test_a_deleted_webhook_leaves_nothing_to_send_or_to_mend(outbox: Outbox) -> None:
    shop = outbox.shop
    other = Outbox(shop, await outbox.webhook("other"))
    epoch, failed, parked = await outbox.blocked(A, "order.reserved", "order.confirmed", "delivery.requested")
    ready = await outbox.happen(B, "order.reserved")
    await outbox.claim(epoch)
    everything = [*failed, *parked, *ready]
    assert await outbox.places(everything) == ["FAILED", "parked", "parked", "ready"]

    assert await delete(outbox) is True
    for table in TABLES:
        count = f"SELECT count(*) FROM {table} WHERE endpoint_id = :id"
        assert await shop.value(count, id=outbox.endpoint_id) == 0, table
    assert await outbox.places(everything) == ["nowhere"] * 4
    assert await other.places(everything) == ["ready"] * 4
    audited = await shop.value("SELECT after FROM admin_actions WHERE action = 'webhook.deleted'")
    assert audited == {"dropped": len(everything)}
    async with shop.database.read() as connection:
        event_id = await shop.value("SELECT CAST(event_id AS text) FROM outbox_events ORDER BY position LIMIT 1")
        found = await failures.get_event(connection, event_id)
    assert found is not None
    assert [message.sink for message in found[1]] == ["other"]
    assert await delete(outbox) is False


async def test_a_new_webhook_under_an_old_name_starts_with_nothing(outbox: Outbox) -> None:
    await outbox.blocked(A, "order.reserved", "order.confirmed")
    await delete(outbox)
    again = await outbox.webhook("shop")
    assert again != outbox.endpoint_id
    assert await outbox.shop.value("SELECT count(*) FROM outbox_messages WHERE endpoint_id = :id", id=again) == 0


async def test_the_relay_that_was_sending_to_a_deleted_webhook_does_no_harm(outbox: Outbox) -> None:
    await outbox.happen(A, "order.reserved", "order.confirmed")
    await outbox.happen(B, "order.reserved")
    epoch = await outbox.take()
    first, second, third = await outbox.claim(epoch)
    await delete(outbox)
    await outbox.settle(epoch, [first])
    await outbox.fail(epoch, third)
    await outbox.park([second.message])
    assert await outbox.claim(epoch) == []
    for table in TABLES:
        assert await outbox.shop.value(f"SELECT count(*) FROM {table}") == 0


async def rotate(outbox: Outbox, secret: str, name: str = "shop") -> bool:
    return await outbox.shop.database.transact(
        lambda connection: endpoints.rotate_secret(connection, name, secret, actor="admin", reason="leaked")
    )


async def live_secrets(outbox: Outbox) -> tuple[str, ...]:
    async with outbox.shop.database.read() as connection:
        (endpoint,) = await relay.ready_endpoints(connection, SHARD)
    return endpoint.secrets


async def test_while_a_secret_rotates_both_are_live_the_newest_first(outbox: Outbox) -> None:
    await outbox.happen(A, "order.reserved")
    assert await live_secrets(outbox) == ("whsec_shop",)
    assert await rotate(outbox, "whsec_new") is True
    assert await live_secrets(outbox) == ("whsec_new", "whsec_shop")
    await outbox.shop.sql("UPDATE outbox_endpoints SET previous_secret_until = now()")
    assert await live_secrets(outbox) == ("whsec_new",)


async def test_no_secret_is_written_into_the_audit(outbox: Outbox) -> None:
    await rotate(outbox, "whsec_new")
    actions = await outbox.shop.sql("SELECT CAST(a AS text) FROM admin_actions a")
    assert len(actions) == 2
    assert not [row for (row,) in actions if "whsec_" in row]


@pytest.mark.parametrize(
    "stopped", ["enabled = false", "open_until = now() + interval '1 day', consecutive_failures = 9"]
)
async def test_enabling_a_webhook_sends_again_whatever_stopped_it(outbox: Outbox, stopped: str) -> None:
    await outbox.happen(A, "order.reserved")
    await outbox.shop.sql(f"UPDATE outbox_endpoints SET {stopped} WHERE name = 'shop'")
    async with outbox.shop.database.read() as connection:
        assert await relay.ready_endpoints(connection, SHARD) == []
    for _ in range(2):
        assert await outbox.shop.database.transact(
            lambda connection: endpoints.enable_webhook(connection, "shop", actor="admin", reason=None)
        )
    async with outbox.shop.database.read() as connection:
        (endpoint,) = await relay.ready_endpoints(connection, SHARD)
    assert (endpoint.probing, endpoint.consecutive_failures) == (False, 0)
    assert await outbox.shop.value("SELECT count(*) FROM admin_actions WHERE action = 'webhook.enable'") == 1


async def test_what_does_not_exist_cannot_be_changed(outbox: Outbox) -> None:
    assert await rotate(outbox, "whsec_new", "nobody") is False
    assert await delete(outbox, "nobody") is False
    assert await outbox.shop.value("SELECT count(*) FROM admin_actions") == 1


UNORDERED = ["waybill.delivery.late"]


async def test_events_that_need_no_order_wait_for_nobody_and_nobody_waits_for_them(outbox: Outbox) -> None:
    await outbox.webhook("shop", unordered_types=UNORDERED)
    other = Outbox(outbox.shop, await outbox.webhook("other"))
    epoch, failed, parked = await outbox.blocked(A, "order.reserved", "order.confirmed", "delivery.late")
    assert await outbox.places([*failed, *parked]) == ["FAILED", "parked", "ready"]
    late = [each for each in await outbox.claim(epoch) if each.message.position == parked[1]]
    await outbox.fail(epoch, late[0], delay_seconds=None)
    await outbox.replay(failed[0])
    assert await outbox.places([*failed, *parked]) == ["ready", "ready", "FAILED"]
    assert len({each.message.lane for each in await other.claim(epoch)}) == 1  # there they are in order


async def test_when_an_order_is_no_longer_wanted_what_waits_only_for_it_goes_on(outbox: Outbox) -> None:
    _, failed, parked = await outbox.blocked(A, "delivery.late", "order.confirmed")
    _, failed_b, parked_b = await outbox.blocked(B, "order.confirmed", "delivery.late", "order.delivered")
    await outbox.webhook("shop", unordered_types=UNORDERED)
    assert await outbox.places([*failed, *parked]) == ["FAILED", "ready"]
    assert await outbox.places([*failed_b, *parked_b]) == ["FAILED", "ready", "parked"]


async def test_what_waits_is_moved_bit_by_bit_holding_nobody_up_and_whoever_asks_again_goes_on(outbox: Outbox) -> None:
    shop = outbox.shop
    epoch, failed, parked = await outbox.blocked(A, "delivery.late", "order.confirmed", "delivery.late")
    ready = await outbox.happen(B, "delivery.late")
    wish = endpoints.WebhookWish("https://shop.example/events", None, UNORDERED)
    await shop.database.transact(lambda c: endpoints.put_webhook(c, "shop", wish, "s", actor="admin", reason=None))
    assert await outbox.places([*failed, *parked, *ready]) == ["FAILED", "parked", "parked", "ready"]
    steps = 0

    async def move(step: Move | None) -> Move | None:
        return await shop.database.transact(lambda c: lanes.move_some(c, step) if step else lanes.begin_move(c, "shop"))

    step = await move(None)
    while step is not None and steps < 5:  # whoever did this broke off
        step, steps = await move(step), steps + 1
    later = await outbox.happen(C, "delivery.late")
    assert await outbox.webhook("shop", unordered_types=UNORDERED) == outbox.endpoint_id
    assert await outbox.places([*failed, *parked, *ready]) == ["FAILED", "ready", "ready", "ready"]
    alone = [parked[1], *ready, *later]
    lanes_of = {each.message.position: each.message.lane for each in await outbox.claim(epoch)}
    assert lanes_of == {parked[0]: f"order:{A}", **{position: f"event:{position}" for position in alone}}
    assert await shop.value("SELECT lanes_stale FROM outbox_endpoints WHERE name = 'shop'") is False
    before = await shop.contents()
    await outbox.webhook("shop", unordered_types=UNORDERED)
    assert await shop.contents() == before


async def test_a_large_backlog_is_moved_in_transactions_of_a_bounded_size(outbox: Outbox) -> None:
    await outbox.shop.sql(
        """
        WITH logged AS (
            INSERT INTO outbox_events (event_id, event_type, subject, lane, shard, data, occurred_at)
            SELECT gen_random_uuid(), 'waybill.delivery.late', 'o', 'order:' || n, n % 4, '{}', now()
            FROM generate_series(1, 12000) n RETURNING position, lane, shard
        ), ready AS (
            INSERT INTO outbox_messages (shard, endpoint_id, position, event_position, lane)
            SELECT shard, :endpoint, position, position, lane FROM logged WHERE shard < 2
        )
        INSERT INTO outbox_parked (shard, endpoint_id, position, event_position, lane)
        SELECT shard, :endpoint, position, position, lane FROM logged WHERE shard >= 2
        """,
        endpoint=outbox.endpoint_id,
    )
    wish = endpoints.WebhookWish("https://shop.example/events", None, UNORDERED)
    database = outbox.shop.database
    await database.transact(lambda c: endpoints.put_webhook(c, "shop", wish, "s", actor="admin", reason=None))
    moved = "SELECT count(*) FROM outbox_messages WHERE lane = 'event:' || position"
    step, before = await database.transact(lambda c: lanes.begin_move(c, "shop")), 0
    while step is not None:
        step = await database.transact(partial(lanes.move_some, move=step))
        now = await outbox.shop.value(moved)
        assert now - before <= lanes.BATCH
        before = now
    assert before == 12000


async def test_of_two_changes_at_a_time_the_later_one_decides_about_what_waits(outbox: Outbox) -> None:
    shop, stale = outbox.shop, "SELECT lanes_stale FROM outbox_endpoints WHERE name = 'shop'"
    await outbox.happen(A, "delivery.late")

    async def put(unordered: list[str]) -> Move | None:
        wish = endpoints.WebhookWish("https://shop.example/events", None, unordered)
        await shop.database.transact(lambda c: endpoints.put_webhook(c, "shop", wish, "s", actor="admin", reason=None))
        return await shop.database.transact(lambda c: lanes.begin_move(c, "shop"))

    slow = await put(UNORDERED)
    assert slow is not None
    assert await put([]) is not None
    assert await shop.database.transact(partial(lanes.move_some, move=slow)) is None
    assert await shop.value(stale) is True  # it is the later one's to do
    await outbox.webhook("shop")
    while slow is not None:
        slow = await shop.database.transact(partial(lanes.move_some, move=slow))
    assert [each.message.lane for each in await outbox.claim(await outbox.take())] == [f"order:{A}"]


async def test_a_change_waits_for_a_batch_that_is_being_moved(outbox: Outbox) -> None:
    shop = outbox.shop
    await outbox.happen(A, "delivery.late")
    wish = endpoints.WebhookWish("https://shop.example/events", None, UNORDERED)
    await shop.database.transact(lambda c: endpoints.put_webhook(c, "shop", wish, "s", actor="admin", reason=None))
    move = await shop.database.transact(lambda c: lanes.begin_move(c, "shop"))
    assert move is not None

    async def moving(connection: AsyncConnection) -> None:
        await lanes.move_some(connection, move)
        with pytest.raises(DBAPIError):
            await shop.sql("SELECT FROM outbox_endpoints WHERE name = 'shop' FOR NO KEY UPDATE NOWAIT")

    await shop.database.transact(moving)


async def test_when_an_order_is_wanted_again_what_is_ready_goes_back_into_its_lane(outbox: Outbox) -> None:
    await outbox.webhook("shop", unordered_types=UNORDERED)
    await outbox.happen(A, "order.confirmed", "delivery.late")
    await outbox.webhook("shop")
    await outbox.happen(A, "order.delivered")
    claimed = await outbox.claim(await outbox.take())
    assert [each.message.lane for each in claimed] == [f"order:{A}"] * 3
