"""What retention deletes, and what it must never: anything that is still needed, and anything that is kept for ever."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import pytest_asyncio
from temporalio.testing import ActivityEnvironment

from activities.retention import RetentionActivities
from db.outbox import notifications
from db.retention import OLD_ROWS
from domain.ids import first_id_of, new_id
from domain.notifications import Channel
from tests.db.outbox.outboxes import LANES, A, B, C, Outbox
from tests.db.shops import Shop

DAYS = 30
OUTBOX = ("outbox_events", "outbox_finished", "outbox_attempts", "outbox_failures", "notifications")


@pytest_asyncio.fixture
async def outbox(shop: Shop) -> Outbox:
    """An outbox whose webhook `shop` receives everything."""
    return Outbox(shop, await Outbox(shop, 0).webhook("shop"))


async def delete(shop: Shop, batch: int = 3) -> dict[str, int]:
    """Run the job."""
    job = RetentionActivities(shop.database, retention_days=DAYS, batch=batch)
    deleted: dict[str, int] = await ActivityEnvironment().run(job.delete_what_is_over)
    return deleted


async def age(shop: Shop, days: int = DAYS + 1) -> None:
    """Let so many days pass."""
    for table, column in (
        ("outbox_events", "occurred_at"),
        ("outbox_finished", "finished_at"),
        ("outbox_failures", "failed_at"),
        ("outbox_messages", "ready_at"),
        ("outbox_attempts", "at"),
    ):
        await shop.sql(f"UPDATE {table} SET {column} = {column} - make_interval(days => :days)", days=days)


async def events(shop: Shop) -> list[int]:
    """Positions of the events that are there."""
    return [position for (position,) in await shop.sql("SELECT position FROM outbox_events ORDER BY 1")]


async def rows(shop: Shop) -> dict[str, int]:
    """How many rows of each of the outbox's tables there are."""
    return {table: await shop.value(f"SELECT count(*) FROM {table}") for table in OUTBOX}


async def delivered(outbox: Outbox, epoch: int, positions: Sequence[int]) -> None:
    """They arrive."""
    await outbox.settle(epoch, [each for each in await outbox.claim(epoch) if each.message.position in positions])


async def test_an_event_goes_with_all_that_hangs_on_it_once_its_messages_ended_long_ago(outbox: Outbox) -> None:
    shop = outbox.shop
    first, second = await outbox.happen(A, "order.reserved", "order.cancelled")
    epoch = await outbox.take()
    await outbox.fail(epoch, (await outbox.claim(epoch))[0], delay_seconds=None)
    await outbox.ignore(first)
    await delivered(outbox, epoch, [second])
    [[event_id]] = await shop.sql("SELECT CAST(event_id AS text) FROM outbox_events WHERE position = :p", p=second)
    await shop.database.transact(
        lambda c: notifications.begin(c, event_id, Channel.EMAIL, "ada@customer.example", "<m@shop.example>")
    )
    await age(shop, DAYS - 1)
    assert sum((await delete(shop)).values()) == 0
    await age(shop, 2)
    assert await delete(shop) == {
        "notifications": 1, "outbox_failures": 1, "outbox_attempts": 1, "outbox_finished": 2, "outbox_events": 2,
        **dict.fromkeys(OLD_ROWS, 0),
    }  # fmt: skip
    assert await rows(shop) == dict.fromkeys(OUTBOX, 0)


async def test_an_event_that_nobody_wanted_goes_when_it_is_old(shop: Shop) -> None:
    await Outbox(shop, 0).happen(A, "order.reserved")
    await age(shop)
    await delete(shop)
    assert await events(shop) == []


async def test_what_is_still_needed_stays_however_old_it_is(outbox: Outbox) -> None:
    shop = outbox.shop
    (done,) = await outbox.happen(LANES[4], "order.reserved")
    epoch, failed, parked = await outbox.blocked(A, "order.reserved", "order.confirmed")
    await delivered(outbox, epoch, [done])
    (retrying,) = await outbox.happen(B, "order.reserved")
    await outbox.fail(epoch, (await outbox.claim(epoch))[0], delay_seconds=9.0)
    (ready,) = await outbox.happen(C, "order.reserved")
    (elsewhere,) = await outbox.happen(LANES[3], "order.reserved")
    await delivered(outbox, epoch, [elsewhere])
    await outbox.webhook("asleep", enabled=False)
    (one_of_two,) = await outbox.happen(LANES[3], "order.reserved")
    await delivered(outbox, epoch, [one_of_two])
    await age(shop, 3650)
    await delete(shop)
    assert await events(shop) == [*failed, *parked, retrying, ready, one_of_two]
    assert await outbox.replay(failed[0]) == "PENDING"
    await delete(shop)
    claimed = [each.message.position for each in await outbox.claim(epoch)]
    assert claimed == [*failed, *parked, ready]


async def test_an_old_event_whose_message_ended_lately_stays_for_a_while(outbox: Outbox) -> None:
    (position,) = await outbox.happen(A, "order.reserved")
    await age(outbox.shop)
    epoch = await outbox.take()
    await delivered(outbox, epoch, [position])
    await delete(outbox.shop)
    assert await events(outbox.shop) == [position]
    await age(outbox.shop)
    await delete(outbox.shop)
    assert await events(outbox.shop) == []


async def test_what_a_fix_put_in_an_events_place_stays_as_long_as_that_event(outbox: Outbox) -> None:
    shop = outbox.shop
    epoch, failed, _ = await outbox.blocked(A, "order.reserved", "order.confirmed")
    (fix,) = await outbox.happen(B, "order.reserved")
    await shop.sql("DELETE FROM outbox_messages WHERE position = :fix", fix=fix)
    [[event_id]] = await shop.sql("SELECT event_id FROM outbox_events WHERE position = :p", p=failed[0])
    await shop.sql("UPDATE outbox_events SET fixes = :event_id WHERE position = :fix", event_id=event_id, fix=fix)
    await outbox.replay(failed[0])
    await shop.sql("UPDATE outbox_messages SET event_position = :fix WHERE position = :p", p=failed[0], fix=fix)
    await age(shop)
    await delete(shop)
    assert fix in await events(shop)
    await delivered(outbox, epoch, await events(shop))
    await age(shop)
    await delete(shop)
    assert await events(shop) in ([], [fix])  # with the run after that one
    await delete(shop)
    assert await events(shop) == []


async def test_beside_a_relay_and_an_admin_nothing_that_is_needed_ever_goes(outbox: Outbox) -> None:
    """Everything is old from the moment it is written; each message ends, fails, is parked, replayed, ignored."""
    shop, chance, over = outbox.shop, random.Random(1), False
    epoch = await outbox.take()
    lost = """
        SELECT position FROM (
            SELECT event_position AS position FROM outbox_messages UNION ALL SELECT event_position FROM outbox_parked
            UNION ALL SELECT event_position FROM outbox_failures WHERE status IN ('PENDING', 'RETRYING', 'FAILED')
        ) needed WHERE NOT EXISTS (SELECT FROM outbox_events e WHERE e.position = needed.position)
    """
    seen: Counter[str] = Counter()

    async def job() -> None:
        while not over:
            seen["deleted"] += (await delete(shop, batch=7)).get("outbox_events", 0)
            assert await shop.sql(lost) == []

    async def happen() -> None:
        for _ in range(60):
            await outbox.happen(chance.choice(LANES), "order.reserved")
            await age(shop)
            for claimed in await outbox.claim(epoch):
                if claimed.lane_blocked:
                    await outbox.park([claimed.message])
                elif chance.random() < 0.2:
                    await outbox.fail(epoch, claimed, delay_seconds=None)
                    break
                else:
                    await outbox.settle(epoch, [claimed])
            failing = await shop.sql("SELECT position FROM outbox_failures WHERE status = 'FAILED'")
            for (position,) in failing:
                if chance.random() < 0.3:
                    await (outbox.replay if chance.random() < 0.5 else outbox.ignore)(position)

    jobs = [asyncio.create_task(job()) for _ in range(2)]
    try:
        await happen()
    finally:
        over = True
        await asyncio.gather(*jobs)
    while ready := [each for each in await outbox.claim(epoch) if not each.lane_blocked]:
        await outbox.settle(epoch, ready)
    for (position,) in await shop.sql("SELECT position FROM outbox_failures WHERE status = 'FAILED'"):
        await outbox.ignore(position)
    while ready := await outbox.claim(epoch):
        await outbox.settle(epoch, ready)
    await age(shop)
    await delete(shop)
    assert await rows(shop) == dict.fromkeys(OUTBOX, 0)
    assert seen["deleted"] > 0


async def test_old_rounds_snapshots_workers_and_forgotten_jobs_go_and_the_rest_stays(shop: Shop) -> None:
    [[long_ago]] = await shop.sql("SELECT now() - interval '31 days'")
    for round_id, finished in ((first_id_of(long_ago), "31 days"), (new_id(), "0 days")):
        await shop.sql(
            "INSERT INTO assignment_rounds (round_id, zone, started_at, finished_at, inputs, pairs, conflicts)"
            f" VALUES (:id, 'north', now(), now() - interval '{finished}', '{{}}', '[]', 0)",
            id=round_id,
        )
    for number, days in enumerate((31, 29)):
        await shop.sql(
            "INSERT INTO snapshots (snapshot_id, status, content, created_at)"
            f" VALUES ('s-{number}', 'DONE', '{{}}', now() - interval '{days} days')"
        )
        await shop.sql(f"INSERT INTO workers VALUES ('w-{number}', now(), now() - interval '{days} days')")
        for job in ("sweep", "forgotten"):
            await shop.sql(
                f"INSERT INTO job_runs (job, last_started_at) VALUES ('{job}', now() - interval '31 days')"
                " ON CONFLICT DO NOTHING"
            )
    for operation_id, status, days in (("done", "DONE", 31), ("paused", "PAUSED", 31), ("new", "DONE", 29)):
        await shop.sql(
            "INSERT INTO outbox_replays (operation_id, action, filter, dry_run, status, actor, reason, created_at)"
            f" VALUES ('{operation_id}', 'replay', '{{}}', false, '{status}', 'a', 'b', now() - interval '{days} days')"
        )
        await shop.sql(f"INSERT INTO outbox_replay_items VALUES ('{operation_id}', 1, 1)")
    gone = {"assignment_rounds": 1, "snapshots": 1, "outbox_replays": 1, "workers": 1, "job_runs": 1}
    assert await delete(shop) == gone
    assert await shop.sql("SELECT operation_id FROM outbox_replay_items ORDER BY 1") == [("new",), ("paused",)]
    assert await delete(shop) == dict.fromkeys(OLD_ROWS, 0)
    assert await shop.sql("SELECT snapshot_id FROM snapshots") == [("s-1",)]
    assert {job for (job,) in await shop.sql("SELECT job FROM job_runs")} == {"sweep", "retention"}


async def test_what_is_kept_for_ever_is_kept(shop: Shop) -> None:
    kept = ("orders", "reservations", "deliveries", "products", "stock_ledger", "admin_actions")
    await shop.put("tea", 5)
    await shop.reserve("o-1", {"tea": 1})
    await shop.confirm("o-1")
    await shop.cancel("o-1")
    for table, column in (("orders", "created_at"), ("stock_ledger", "at"), ("admin_actions", "at")):
        await shop.sql(f"UPDATE {table} SET {column} = now() - interval '10 years'")
    await age(shop, 3650)
    before = await shop.contents()
    assert (await delete(shop))["outbox_events"] > 0
    after = await shop.contents()
    assert {table: after[table] for table in kept} == {table: before[table] for table in kept}
