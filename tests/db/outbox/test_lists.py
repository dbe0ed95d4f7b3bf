"""Failing messages as an admin reads them."""

from __future__ import annotations

import pytest

from db.outbox import failures
from domain.ids import new_id
from domain.outbox import MessageStatus
from tests.db.outbox.outboxes import LANES, A, B, Outbox, failing


async def test_failures_are_listed_newest_first_page_by_page(outbox: Outbox) -> None:
    positions = [await failing(outbox, order_id, delay_seconds=None) for order_id in LANES[:5]]
    # Two at the same instant: the page's edge must still fall between them.
    await outbox.shop.sql(
        "UPDATE outbox_failures SET failed_at = now() WHERE position = ANY(:some)", some=positions[1:4]
    )
    listed: list[int] = []
    after = None
    async with outbox.shop.database.read() as connection:
        while page := await failures.list_failures(connection, MessageStatus.FAILED, {}, after, 2):
            listed += [row.position for row in page]
            after = page[-1].failed_at, page[-1].position, page[-1].endpoint_id
    assert sorted(listed) == positions
    assert listed[:3] == positions[3:0:-1]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, [A, B]),
        ({"event_type": "waybill.order.reserved"}, [A, B]),
        ({"event_type": "waybill.order.cancelled"}, []),
        ({"error_class": "unknown"}, [B]),
        ({"sink": "shop", "error_class": "event"}, [A]),
        ({"sink": "nobody"}, []),
    ],
)
async def test_failures_are_found_by_type_class_and_sink(
    outbox: Outbox, filters: dict[str, str], found: list[str]
) -> None:
    await failing(outbox, A, delay_seconds=None)
    await failing(outbox, B, delay_seconds=None)
    await failing(outbox, LANES[3])
    await outbox.shop.sql("UPDATE outbox_failures SET error_class = 'unknown' WHERE lane = :lane", lane=f"order:{B}")
    async with outbox.shop.database.read() as connection:
        rows = await failures.list_failures(connection, MessageStatus.FAILED, filters, None, 10)
    assert sorted(row.subject for row in rows) == sorted(found)


async def test_failures_of_one_kind_are_one_group_and_its_newest_speaks_for_it(outbox: Outbox) -> None:
    epoch = await outbox.take()
    for number, order_id in enumerate(LANES[:5]):
        await outbox.happen(order_id, "order.reserved")
        (claimed,) = await outbox.claim(epoch)
        error = f"HTTP 400: no order {number}" if number < 3 else "HTTP 400: no zone"
        await outbox.fail(epoch, claimed, delay_seconds=None if number < 4 else 9.0, error=error)
    positions = [row[0] for row in await outbox.shop.sql("SELECT position FROM outbox_failures ORDER BY position")]

    async def groups(status: MessageStatus) -> list[tuple[str, int, int]]:
        told = []
        after = None
        async with outbox.shop.database.read() as connection:
            while page := await failures.list_groups(connection, status, after, 1):
                (row,) = page
                assert row.first_failed_at <= row.last_failed_at
                assert (row.sink, row.event_type, row.error_class) == ("shop", "waybill.order.reserved", "event")
                told.append((row.last_error, row.total, row.position))
                after = row.last_failed_at, row.fingerprint
        return told

    assert await groups(MessageStatus.FAILED) == [
        ("HTTP 400: no zone", 1, positions[3]),
        ("HTTP 400: no order 2", 3, positions[2]),
    ]
    assert await groups(MessageStatus.RETRYING) == [("HTTP 400: no zone", 1, positions[4])]


async def test_an_event_tells_where_each_of_its_messages_is(outbox: Outbox) -> None:
    await outbox.webhook("other")
    epoch, failed, parked = await outbox.blocked(A, "order.reserved", "order.confirmed")
    ids = dict(map(tuple, await outbox.shop.sql("SELECT position, CAST(event_id AS text) FROM outbox_events")))

    async def tell(position: int) -> tuple[dict[str, str], list[tuple[str, str]]]:
        async with outbox.shop.database.read() as connection:
            found = await failures.get_event(connection, ids[position])
        assert found is not None
        event, messages, attempts = found
        assert (event.event_id, event.subject, event.data["orderId"]) == (ids[position], A, A)
        return {row.sink: row.status for row in messages}, [(row.outcome, row.error_class) for row in attempts]

    assert await tell(failed[0]) == ({"shop": "FAILED", "other": "PENDING"}, [("failed", "event")])
    assert await tell(parked[0]) == ({"shop": "PENDING", "other": "PENDING"}, [])
    await outbox.replay(failed[0])
    assert (await tell(failed[0]))[0] == {"shop": "PENDING", "other": "PENDING"}
    await outbox.settle(epoch, await outbox.claim(epoch))
    assert await tell(failed[0]) == ({"shop": "DELIVERED", "other": "PENDING"}, [("failed", "event")])


async def test_an_event_that_never_was_is_not_found(outbox: Outbox) -> None:
    async with outbox.shop.database.read() as connection:
        assert await failures.get_event(connection, new_id()) is None
