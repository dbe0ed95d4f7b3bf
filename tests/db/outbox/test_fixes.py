"""An admin sends another payload: under the event's id only if nobody can know it, and always in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from db.outbox import decisions, failures, relay, retries, settle
from db.outbox.decisions import Fixed, MessageMissing, MessageSettled, PayloadRefused
from domain.outbox import ErrorClass, MessageStatus
from tests.db.outbox.outboxes import SHARD, A, Outbox

PAYLOAD = {"orderId": A, "status": "RESERVED", "note": "mended"}
OTHER = {**PAYLOAD, "note": "mended again"}


async def fix(outbox: Outbox, position: int, payload: dict[str, Any] = PAYLOAD) -> Fixed:
    return await outbox.shop.database.transact(
        lambda c: decisions.fix(c, position, outbox.endpoint_id, payload, actor="admin", reason="wrong zone")
    )


async def event_id(outbox: Outbox, position: int) -> str:
    return str(
        await outbox.shop.value("SELECT CAST(event_id AS text) FROM outbox_events WHERE position = :p", p=position)
    )


# --- what happened to a message before it was fixed; each ends with the message FAILED

History = Callable[[Outbox, int], Awaitable[None]]


async def fail(outbox: Outbox, position: int, error_class: ErrorClass, *, in_doubt: bool) -> None:
    """The relay's attempt."""
    epoch = await outbox.take()
    (claimed,) = [each for each in await outbox.claim(epoch) if each.message.position == position]
    await outbox.fail(epoch, claimed, error_class=error_class, in_doubt=in_doubt)
    await outbox.shop.database.transact(lambda c: relay.drop_claim(c, SHARD, outbox.endpoint_id, epoch))


async def retry(outbox: Outbox, position: int, error_class: ErrorClass | None, *, in_doubt: bool = False) -> None:
    """A try by the message's workflow; None: its worker died."""
    begun = await outbox.shop.database.transact(lambda c: retries.begin_retry(c, position, outbox.endpoint_id))
    assert begun is not None
    message, endpoint = begun.message, begun.endpoint
    assert message is not None
    assert endpoint is not None
    if error_class is None:
        await outbox.shop.sql("UPDATE outbox_failures SET attempt_began_at = now() - interval '1 minute'")
    else:
        await outbox.shop.database.transact(
            lambda c: retries.retry_failed(c, message, endpoint, error_class, "no", 0.0, in_doubt=in_doubt)
        )
        await outbox.shop.sql("UPDATE outbox_endpoints SET open_until = NULL")


async def refused(outbox: Outbox, position: int) -> None:
    await fail(outbox, position, ErrorClass.EVENT, in_doubt=False)


async def refused_twice_by_the_endpoint_between(outbox: Outbox, position: int) -> None:
    await refused(outbox, position)
    await retry(outbox, position, ErrorClass.ENDPOINT)
    await retry(outbox, position, ErrorClass.EVENT)


async def not_answered(outbox: Outbox, position: int) -> None:
    await fail(outbox, position, ErrorClass.UNKNOWN, in_doubt=True)


async def refused_after_a_server_error_held_against_the_endpoint(outbox: Outbox, position: int) -> None:
    await refused(outbox, position)
    await retry(outbox, position, ErrorClass.ENDPOINT, in_doubt=True)
    await retry(outbox, position, ErrorClass.EVENT)


async def refused_after_an_outage_that_opened_the_breaker(outbox: Outbox, position: int) -> None:
    epoch = await outbox.take()
    (claimed,) = [each for each in await outbox.claim(epoch) if each.message.position == position]
    await outbox.shop.database.transact(
        lambda c: settle.log_attempt(
            c, outbox.endpoint_id, claimed.message, ErrorClass.ENDPOINT, "HTTP 503", in_doubt=True
        )
    )
    await outbox.fail(epoch, claimed)


async def refused_after_its_relay_died(outbox: Outbox, position: int) -> None:
    await outbox.claim(await outbox.take("dead"))
    await refused(outbox, position)


async def refused_after_its_pump_failed(outbox: Outbox, position: int) -> None:
    epoch = await outbox.take()
    claimed = await outbox.claim(epoch)
    await outbox.shop.database.transact(lambda c: relay.abandon_claim(c, SHARD, outbox.endpoint_id, epoch))
    await outbox.fail(epoch, claimed[0])


async def refused_and_the_worker_of_a_retry_died(outbox: Outbox, position: int) -> None:
    await refused(outbox, position)
    await retry(outbox, position, None)


async def refused_again_after_the_worker_of_a_retry_died(outbox: Outbox, position: int) -> None:
    await refused_and_the_worker_of_a_retry_died(outbox, position)
    await retry(outbox, position, ErrorClass.EVENT)


@pytest.mark.parametrize(
    ("history", "keeps_id"),
    [
        (refused, True),
        (refused_twice_by_the_endpoint_between, True),
        (not_answered, False),
        (refused_after_a_server_error_held_against_the_endpoint, False),
        (refused_after_an_outage_that_opened_the_breaker, False),
        (refused_after_its_relay_died, False),
        (refused_after_its_pump_failed, False),
        (refused_and_the_worker_of_a_retry_died, False),
        (refused_again_after_the_worker_of_a_retry_died, False),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_a_fix_keeps_the_id_only_if_no_attempt_can_have_succeeded(
    outbox: Outbox, history: History, keeps_id: bool
) -> None:
    position, behind = await outbox.happen(A, "order.reserved", "order.confirmed")
    await outbox.webhook("other")
    await history(outbox, position)
    old_id = await event_id(outbox, position)
    fixed = await fix(outbox, position)
    assert (fixed.status, fixed.event_id == old_id, fixed.fixes) == (
        MessageStatus.PENDING,
        keeps_id,
        None if keeps_id else old_id,
    )
    epoch = await outbox.take()
    sent = []
    while claimed := await outbox.claim(epoch):
        sent += [each.message for each in claimed]
        await outbox.settle(epoch, claimed)
    assert [each.position for each in sent] == [position, behind], "in its place in the lane"
    message = sent[0]
    assert (message.event_id, message.data, message.fixes) == (fixed.event_id, PAYLOAD, fixed.fixes)
    assert (message.event_type, message.subject, message.lane) == ("waybill.order.reserved", A, f"order:{A}")
    original = await outbox.shop.value("SELECT data FROM outbox_events WHERE position = :p", p=position)
    assert original == {"orderId": A, "status": "RESERVED"}, "other endpoints get what happened"


async def test_a_fix_lets_the_lane_go_on_behind_it_and_is_audited_once(outbox: Outbox) -> None:
    epoch, failed, parked = await outbox.blocked(A, "order.reserved", "order.confirmed")
    fixed = await asyncio.gather(*(fix(outbox, failed[0]) for _ in range(5)))
    assert len(set(fixed)) == 1
    assert await outbox.places([*failed, *parked]) == ["ready", "ready"]
    claimed = await outbox.claim(epoch)
    await outbox.settle(epoch, claimed)
    assert (await fix(outbox, failed[0])).status is MessageStatus.DELIVERED  # whose answer to the first got lost
    actions = await outbox.shop.sql(
        "SELECT action, reason, before, after FROM admin_actions WHERE action LIKE 'outbox%'"
    )
    before = {"status": "FAILED", "attempts": 1}
    after = {"status": "PENDING", "eventId": fixed[0].event_id, "payload": PAYLOAD}
    assert actions == [("outbox.fix", "wrong zone", before, after)]


async def test_admins_with_different_fixes_fix_once(outbox: Outbox) -> None:
    _, (position,), _ = await outbox.blocked(A, "order.reserved")
    await outbox.shop.sql("UPDATE outbox_attempts SET outcome = 'in_doubt'")
    ends = await asyncio.gather(
        *(fix(outbox, position, {**PAYLOAD, "note": str(number)}) for number in range(5)), return_exceptions=True
    )
    assert sum(isinstance(each, MessageSettled) for each in ends) == 4
    assert await outbox.shop.value("SELECT count(*) FROM outbox_events WHERE fixes IS NOT NULL") == 1


async def test_a_fix_that_fails_in_turn_can_be_sent_again_and_fixed_again(outbox: Outbox) -> None:
    (position,) = await outbox.happen(A, "order.reserved")
    await not_answered(outbox, position)
    old_id = await event_id(outbox, position)
    first = await fix(outbox, position)
    await fail(outbox, position, ErrorClass.EVENT, in_doubt=False)
    assert (await fix(outbox, position)).status is MessageStatus.RETRYING  # a late copy of the call
    again = await fix(outbox, position, OTHER)
    assert (again.event_id, again.fixes) == (first.event_id, old_id), "nobody can know the second event"
    await fail(outbox, position, ErrorClass.UNKNOWN, in_doubt=True)
    await outbox.shop.sql("UPDATE outbox_failures SET status = 'FAILED'")
    same = await fix(outbox, position, OTHER)
    assert (same.status, same.event_id) == (MessageStatus.PENDING, first.event_id), "as a replay"
    await fail(outbox, position, ErrorClass.UNKNOWN, in_doubt=True)
    third = await fix(outbox, position)
    assert third.event_id not in (old_id, first.event_id)
    assert third.fixes == old_id, "receivers know it by what happened"
    (claimed,) = await outbox.claim(await outbox.take())
    assert (claimed.message.event_id, claimed.message.data) == (third.event_id, PAYLOAD)


@pytest.mark.parametrize("status", ["DELIVERED", "IGNORED", "PENDING"])
async def test_what_is_settled_or_on_its_way_cannot_be_fixed(outbox: Outbox, status: str) -> None:
    _, (position,), _ = await outbox.blocked(A, "order.reserved")
    await outbox.shop.sql("UPDATE outbox_failures SET status = :status", status=status)
    before = await outbox.shop.contents()
    with pytest.raises(MessageSettled):
        await fix(outbox, position)
    assert await outbox.shop.contents() == before


async def test_a_fix_that_would_tell_of_another_order_is_refused(outbox: Outbox) -> None:
    _, (position,), _ = await outbox.blocked(A, "order.reserved")
    before = await outbox.shop.contents()
    with pytest.raises(PayloadRefused, match="orderId"):
        await fix(outbox, position, {**PAYLOAD, "orderId": "another"})
    with pytest.raises(MessageMissing):
        await fix(outbox, 4711)
    assert await outbox.shop.contents() == before


# --- what an admin reads of it


async def tell(outbox: Outbox, event: str) -> tuple[Any, dict[str, Any], list[str]]:
    async with outbox.shop.database.read() as connection:
        found = await failures.get_event(connection, event)
    assert found is not None
    told, messages, attempts = found
    return told, {row.sink: row for row in messages}, [row.outcome for row in attempts]


async def test_an_event_shows_the_payload_that_was_sent_under_its_id(outbox: Outbox) -> None:
    await outbox.webhook("other")
    (position,) = await outbox.happen(A, "order.reserved")
    await refused(outbox, position)
    fixed = await fix(outbox, position)
    event, messages, attempts = await tell(outbox, fixed.event_id)
    assert event.data == {"orderId": A, "status": "RESERVED"}
    assert {sink: (row.fixed_data, row.fixed_by) for sink, row in messages.items()} == {
        "shop": (PAYLOAD, None),
        "other": (None, None),
    }
    assert attempts == ["failed"]


async def test_an_event_shows_which_one_took_its_place_and_that_one_what_it_fixes(outbox: Outbox) -> None:
    await outbox.webhook("other")
    (position,) = await outbox.happen(A, "order.reserved")
    await not_answered(outbox, position)
    old_id = await event_id(outbox, position)
    second = await fix(outbox, position)
    await not_answered(outbox, position)
    third = await fix(outbox, position, OTHER)
    event, messages, attempts = await tell(outbox, old_id)
    assert (event.fixes, attempts) == (None, ["in_doubt"])
    assert {sink: row.fixed_by for sink, row in messages.items()} == {"shop": third.event_id, "other": None}
    event, messages, attempts = await tell(outbox, second.event_id)
    assert (event.fixes, event.data, attempts) == (old_id, PAYLOAD, ["in_doubt"])
    assert {sink: row.fixed_by for sink, row in messages.items()} == {"shop": third.event_id}
    event, messages, attempts = await tell(outbox, third.event_id)
    assert (event.fixes, event.data, attempts) == (old_id, OTHER, [])
    assert {sink: (row.status, row.fixed_by) for sink, row in messages.items()} == {"shop": ("PENDING", None)}
