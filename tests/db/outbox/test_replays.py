"""Bulk operations: exactly what was frozen, each message once, and only while the row says so."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from db.outbox import replays
from db.outbox.replays import OperationMissing, OperationOver
from domain.ids import new_id
from domain.outbox import ErrorClass, ReplayAction, ReplayProgress, ReplayStatus
from tests.db.outbox.outboxes import LANES, A, B, C, Outbox

ANYTHING = dict.fromkeys(("event_type", "error_class", "sink", "fingerprint"))


async def fail(outbox: Outbox, *order_ids: str, error_class: ErrorClass = ErrorClass.EVENT) -> list[int]:
    """A FAILED message for each of the orders."""
    positions = [(await outbox.happen(order_id, "order.reserved"))[0] for order_id in order_ids]
    epoch = await outbox.take()
    for claimed in await outbox.claim(epoch):
        if claimed.message.position in positions:
            await outbox.fail(epoch, claimed, error_class=error_class, delay_seconds=None)
    return positions


async def begin(
    outbox: Outbox, action: str = "replay", *, dry_run: bool = False, filters: Mapping[str, str] | None = None
) -> str:
    operation_id = new_id()
    await outbox.shop.database.transact(
        lambda c: replays.begin(
            c,
            operation_id,
            ReplayAction(action),
            {**ANYTHING, **(filters or {})},
            dry_run=dry_run,
            actor="admin",
            reason="the shop is back",
        )
    )
    return operation_id


async def advance(outbox: Outbox, operation_id: str, limit: int = 20) -> tuple[int, ReplayProgress]:
    return await outbox.shop.database.transact(lambda c: replays.advance(c, operation_id, limit))


async def audited(outbox: Outbox, action: str) -> int:
    return int(await outbox.shop.value("SELECT count(*) FROM admin_actions WHERE action = :action", action=action))


async def test_a_bulk_replay_puts_back_what_was_failed_when_it_was_asked_for_and_nothing_later(outbox: Outbox) -> None:
    frozen = await fail(outbox, *LANES[:3])
    operation_id = await begin(outbox)
    later = await fail(outbox, *LANES[3:5])
    assert await advance(outbox, operation_id, 2) == (2, ReplayProgress(ReplayStatus.RUNNING, 3, 2, 0))
    assert await outbox.places(frozen) == ["ready", "ready", "FAILED"]
    assert await advance(outbox, operation_id, 2) == (1, ReplayProgress(ReplayStatus.DONE, 3, 3, 0))
    assert await outbox.places([*frozen, *later]) == ["ready"] * 3 + ["FAILED"] * 2
    assert await advance(outbox, operation_id) == (0, ReplayProgress(ReplayStatus.DONE, 3, 3, 0))
    assert (await audited(outbox, "outbox.replays"), await audited(outbox, "outbox.replay")) == (1, 3)


async def test_a_bulk_ignore_ends_them(outbox: Outbox) -> None:
    epoch, failed, parked = await outbox.blocked(A, "order.reserved", "order.confirmed")
    await advance(outbox, await begin(outbox, "ignore"))
    assert await outbox.places([*failed, *parked]) == ["IGNORED", "ready"]
    assert [each.message.position for each in await outbox.claim(epoch)] == parked


async def test_what_somebody_else_decided_meanwhile_is_skipped(outbox: Outbox) -> None:
    positions = await fail(outbox, A, B, C)
    first, second = await begin(outbox), await begin(outbox, "ignore")
    await outbox.replay(positions[0])
    moved = await asyncio.gather(advance(outbox, first), advance(outbox, second))
    assert sum(progress.done for _, progress in moved) == 2
    assert sum(progress.skipped for _, progress in moved) == 4
    assert {progress.status for _, progress in moved} == {ReplayStatus.DONE}


@pytest.mark.parametrize(
    ("filters", "chosen"),
    [
        ({}, [A, B, C]),
        ({"event_type": "waybill.order.reserved"}, [A, B, C]),
        ({"event_type": "waybill.order.cancelled"}, []),
        ({"error_class": "unknown"}, [C]),
        ({"error_class": "event", "sink": "shop"}, [A, B]),
        ({"sink": "other"}, []),
        ({"fingerprint": "f"}, [B]),
    ],
    ids=str,
)
async def test_the_filter_chooses(outbox: Outbox, filters: dict[str, str], chosen: list[str]) -> None:
    await fail(outbox, A, B)
    await fail(outbox, C, error_class=ErrorClass.UNKNOWN)
    await outbox.shop.sql("UPDATE outbox_failures SET fingerprint = 'f' WHERE lane = :lane", lane=f"order:{B}")
    operation_id = await begin(outbox, filters=filters)
    async with outbox.shop.database.read() as connection:
        found = await replays.get(connection, operation_id)
    assert found is not None
    row, sample = found
    assert (row.total, row.filter) == (len(chosen), filters)
    assert row.status == ("RUNNING" if chosen else "DONE")
    assert [item.subject for item in sample] == chosen


async def test_a_dry_run_counts_and_changes_nothing(outbox: Outbox) -> None:
    positions = await fail(outbox, A, B)
    operation_id = await begin(outbox, dry_run=True)
    assert await advance(outbox, operation_id) == (0, ReplayProgress(ReplayStatus.DONE, 2, 0, 0))
    assert await outbox.places(positions) == ["FAILED", "FAILED"]


async def test_any_number_of_messages_is_frozen_bit_by_bit_and_none_that_fails_meanwhile(outbox: Outbox) -> None:
    count = replays.FROZEN_AT_ONCE + 5000
    stage = """
        INSERT INTO outbox_failures (endpoint_id, position, event_position, shard, lane, event_type, status, attempts,
            error_class, last_error, fingerprint, failed_at)
        SELECT :endpoint, n, n, 0, 'order:' || n, 'waybill.order.reserved', 'FAILED', 3, 'event', 'HTTP 400', 'f',
            now() + make_interval(hours => :hours)
        FROM generate_series(CAST(:first AS int), :last) n
    """
    staged = {"endpoint": outbox.endpoint_id, "hours": 0}
    await outbox.shop.sql(stage, **staged, first=1, last=count)
    await outbox.shop.sql(stage, **{**staged, "hours": 1}, first=count + 1, last=count + 10)
    at_once: list[int] = []
    operation_id = new_id()

    async def freeze(connection: AsyncConnection) -> None:
        def note(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: bool) -> None:
            if "outbox_replay_items" in statement:
                at_once.append(1)

        event.listen(connection.sync_connection, "after_cursor_execute", note)
        replay = ReplayAction.REPLAY
        await replays.begin(connection, operation_id, replay, ANYTHING, dry_run=False, actor="admin", reason="back")
        event.remove(connection.sync_connection, "after_cursor_execute", note)

    await outbox.shop.database.transact(freeze)
    frozen = "SELECT count(*), max(position) FROM outbox_replay_items WHERE operation_id = :id"
    assert await outbox.shop.sql(frozen, id=operation_id) == [(count, count)]
    assert await outbox.shop.value("SELECT total FROM outbox_replays") == count
    assert len(at_once) == 2


@pytest.mark.parametrize("stopped", ["enabled = false", "open_until = now() + interval '1 hour'"])
async def test_an_endpoint_that_cannot_be_sent_to_is_waited_for_and_others_are_not(
    outbox: Outbox, stopped: str
) -> None:
    positions = await fail(outbox, A, B)
    operation_id = await begin(outbox)
    await outbox.shop.sql(f"UPDATE outbox_endpoints SET {stopped} WHERE name = 'shop'")
    assert await advance(outbox, operation_id) == (0, ReplayProgress(ReplayStatus.RUNNING, 2, 0, 0, ["shop"]))
    assert await outbox.places(positions) == ["FAILED", "FAILED"]
    giving_up = await begin(outbox, "ignore")  # needs nobody's answer
    assert (await advance(outbox, giving_up, 1))[1].done == 1
    await outbox.shop.sql("UPDATE outbox_endpoints SET enabled = true, open_until = NULL")
    assert (await advance(outbox, operation_id))[1] == ReplayProgress(ReplayStatus.DONE, 2, 1, 1)


async def test_a_breaker_that_is_due_for_a_probe_and_has_nothing_to_probe_with_gets_a_few(outbox: Outbox) -> None:
    await fail(outbox, *LANES[:4])
    operation_id = await begin(outbox)
    await outbox.shop.sql("UPDATE outbox_endpoints SET open_until = now() WHERE name = 'shop'")
    assert (await advance(outbox, operation_id, 2))[0] == 2
    assert (await advance(outbox, operation_id, 2))[0] == 0


async def test_messages_of_an_endpoint_that_was_deleted_are_skipped(outbox: Outbox) -> None:
    await fail(outbox, A)
    operation_id = await begin(outbox)
    await outbox.shop.sql("DELETE FROM outbox_failures")
    await outbox.shop.sql("DELETE FROM outbox_endpoints WHERE name = 'shop'")
    assert (await advance(outbox, operation_id))[1] == ReplayProgress(ReplayStatus.DONE, 1, 0, 1)


async def test_a_paused_operation_decides_nothing_until_it_is_resumed(outbox: Outbox) -> None:
    await fail(outbox, A, B)
    operation_id = await begin(outbox)
    await advance(outbox, operation_id, 1)
    database = outbox.shop.database
    for _ in range(2):
        await database.transact(lambda c: replays.pause(c, operation_id, actor="admin", reason="too fast"))
    assert await advance(outbox, operation_id) == (0, ReplayProgress(ReplayStatus.PAUSED, 2, 1, 0))
    for _ in range(2):
        await database.transact(lambda c: replays.resume(c, operation_id, actor="admin", reason=None))
    assert (await advance(outbox, operation_id))[1].status is ReplayStatus.DONE
    assert [await audited(outbox, f"outbox.replays.{each}") for each in ("pause", "resume")] == [1, 1]
    turn: Any
    with pytest.raises(OperationOver):
        await database.transact(lambda c: replays.pause(c, operation_id, actor="admin", reason=None))
    await database.transact(lambda c: replays.resume(c, operation_id, actor="admin", reason=None))
    assert await advance(outbox, operation_id) == (0, ReplayProgress(ReplayStatus.DONE, 2, 2, 0))
    for turn in (replays.pause, replays.resume):
        with pytest.raises(OperationMissing):
            await database.transact(lambda c, turn=turn: turn(c, "nope", actor="admin", reason=None))  # type: ignore[misc]


async def test_operations_are_listed_newest_first_page_by_page(outbox: Outbox) -> None:
    made = [await begin(outbox) for _ in range(3)]
    await outbox.shop.sql("UPDATE outbox_replays SET created_at = now()")  # the page's edge falls between equals
    listed: list[str] = []
    after = None
    async with outbox.shop.database.read() as connection:
        while page := await replays.list_operations(connection, after, 2):
            listed += [row.operation_id for row in page]
            after = page[-1].created_at, page[-1].operation_id
    assert listed == sorted(made, reverse=True)
