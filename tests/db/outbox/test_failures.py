"""Failing messages: their retries and what an admin does about them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import pytest

from db.outbox import decisions, retries
from db.outbox.decisions import AttemptInFlight, MessageMissing, MessageSettled
from db.outbox.retries import Retry
from domain.outbox import FAILURE_WORKFLOWS, SHARDS, ErrorClass, MessageStatus
from tests.db.outbox.outboxes import SHARD, A, B, Outbox, failing

STORY = ("order.reserved", "order.confirmed", "delivery.requested")


async def begin(outbox: Outbox, position: int) -> Retry | None:
    return await outbox.shop.database.transact(
        lambda connection: retries.begin_retry(connection, position, outbox.endpoint_id)
    )


async def end(
    outbox: Outbox, retry: Retry | None, error_class: ErrorClass | None, delay_seconds: float | None = 30.0
) -> None:
    """The retry passed, or failed for this reason."""
    assert retry is not None
    message, endpoint = retry.message, retry.endpoint
    assert message is not None
    assert endpoint is not None
    if error_class is None:
        await outbox.shop.database.transact(lambda c: retries.retry_delivered(c, message, endpoint))
    else:
        await outbox.shop.database.transact(
            lambda c: retries.retry_failed(c, message, endpoint, error_class, "no", delay_seconds, in_doubt=False)
        )


async def long_begun(outbox: Outbox, retry: Retry | None) -> Retry:
    """The retry, as if it had begun a minute ago: its lease is over, whatever became of it."""
    assert retry is not None
    assert retry.message is not None
    await outbox.shop.sql("UPDATE outbox_failures SET attempt_began_at = attempt_began_at - interval '1 minute'")
    return replace(retry, message=retry.message._replace(claimed_at=retry.message.claimed_at - 60))


async def state(outbox: Outbox) -> tuple[object, ...]:
    ((*row,),) = await outbox.shop.sql("SELECT status, attempts, error_class FROM outbox_failures")
    return tuple(row)


# --- retries


async def test_an_attempt_is_counted_before_it_is_made(outbox: Outbox) -> None:
    retry = await begin(outbox, await failing(outbox))
    assert retry is not None
    assert retry.message is not None
    assert (retry.attempts, retry.message.attempts) == (2, 2)
    assert await state(outbox) == ("RETRYING", 2, "event")


async def test_a_retry_that_fails_waits_for_the_next(outbox: Outbox) -> None:
    position = await failing(outbox)
    await end(outbox, await begin(outbox, position), ErrorClass.EVENT)
    assert await state(outbox) == ("RETRYING", 2, "event")
    waiting = await begin(outbox, position)
    assert waiting is not None
    assert (waiting.message, waiting.attempts) == (None, 2)
    assert 0 < waiting.wait_seconds <= 30


async def test_the_endpoints_fault_burns_no_attempt(outbox: Outbox) -> None:
    position = await failing(outbox)
    for number in range(1, 4):
        await end(outbox, await begin(outbox, position), ErrorClass.ENDPOINT, 0.0)
        opened = await outbox.shop.sql("SELECT consecutive_failures FROM outbox_endpoints WHERE open_until > now()")
        assert opened == [(number,)]
        waiting = await begin(outbox, position)
        assert waiting is not None
        assert waiting.message is None  # nothing is tried while the breaker is open
        await outbox.shop.sql("UPDATE outbox_endpoints SET open_until = now() WHERE open_until IS NOT NULL")
    assert await state(outbox) == ("RETRYING", 1, "endpoint")
    assert await outbox.shop.value("SELECT sum(errors_endpoint) FROM outbox_shards") == 3
    assert await outbox.shop.value("SELECT count(*) FROM outbox_attempts") == 4


async def test_the_last_try_makes_a_message_failed_and_its_lane_stays_parked(outbox: Outbox) -> None:
    epoch, failed, parked = await outbox.blocked(A, *STORY)
    await outbox.shop.sql("UPDATE outbox_failures SET status = 'RETRYING', attempts = 2, next_attempt_at = now()")
    await outbox.shop.sql("UPDATE outbox_shards SET failed_transitions = 0")
    await end(outbox, await begin(outbox, failed[0]), ErrorClass.EVENT, None)
    assert await state(outbox) == ("FAILED", 3, "event")
    assert await outbox.places([*failed, *parked]) == ["FAILED", "parked", "parked"]
    assert await outbox.shop.value("SELECT sum(failed_transitions) FROM outbox_shards") == 1
    assert await outbox.claim(epoch) == []


async def test_a_retry_that_passes_delivers_the_message_and_frees_its_lane_in_order(outbox: Outbox) -> None:
    epoch, failed, parked = await outbox.blocked(A, *STORY)
    await outbox.shop.sql("UPDATE outbox_failures SET status = 'RETRYING', next_attempt_at = now()")
    await end(outbox, await begin(outbox, failed[0]), None)
    assert await outbox.places([*failed, *parked]) == ["DELIVERED", "ready", "ready"]
    assert [each.message.position for each in await outbox.claim(epoch)] == parked
    assert await outbox.dispatched() == 1


@pytest.mark.parametrize("stopped", ["enabled = false", "open_until = now() + interval '1 hour'"])
async def test_while_its_endpoint_is_stopped_a_message_is_not_tried_and_leaves_its_place_to_others(
    outbox: Outbox, stopped: str
) -> None:
    position = await failing(outbox)
    await outbox.shop.sql("UPDATE outbox_failures SET workflow_started_at = now()")
    await outbox.shop.sql(f"UPDATE outbox_endpoints SET {stopped} WHERE name = 'shop'")
    retry = await begin(outbox, position)
    assert retry is not None
    assert (retry.message, retry.status, retry.attempts, retry.place_given_back) == (None, "RETRYING", 1, True)

    async def waiting() -> list[int]:
        async with outbox.shop.database.read() as connection:
            return [each.position for each in await retries.without_workflow(connection, SHARD, 10)]

    assert await outbox.shop.value("SELECT workflow_started_at FROM outbox_failures") is None
    assert await waiting() == []
    await outbox.shop.sql("UPDATE outbox_endpoints SET enabled = true, open_until = NULL")
    assert await waiting() == [position]


@pytest.mark.parametrize("late", [None, ErrorClass.EVENT])
async def test_the_late_end_of_a_retry_does_not_undo_what_an_admin_decided(
    outbox: Outbox, late: ErrorClass | None
) -> None:
    position = await failing(outbox)
    retry = await long_begun(outbox, await begin(outbox, position))
    await outbox.ignore(position)
    before = await outbox.shop.contents()
    await end(outbox, retry, late, None)
    assert await outbox.shop.contents() == before


async def test_the_late_end_of_a_retry_does_not_end_a_later_one(outbox: Outbox) -> None:
    position = await failing(outbox)
    slow = await long_begun(outbox, await begin(outbox, position))
    await begin(outbox, position)
    before = await outbox.shop.contents()
    await end(outbox, slow, ErrorClass.EVENT, None)
    assert await outbox.shop.contents() == before


async def test_the_late_end_of_a_retry_does_not_end_one_of_the_same_count_after_a_replay(outbox: Outbox) -> None:
    position = await failing(outbox)
    slow = await long_begun(outbox, await begin(outbox, position))
    await outbox.replay(position)
    epoch = await outbox.take()
    (claimed,) = await outbox.claim(epoch)
    await outbox.fail(epoch, claimed)
    again = await begin(outbox, position)
    assert again is not None
    assert again.attempts == slow.attempts
    before = await outbox.shop.contents()
    await end(outbox, slow, None)
    assert await outbox.shop.contents() == before


async def test_a_retry_of_what_is_gone_is_told_so(outbox: Outbox) -> None:
    assert await begin(outbox, 4711) is None
    position = await failing(outbox, delay_seconds=None)
    decided = await begin(outbox, position)
    assert decided is not None
    assert (decided.status, decided.message) == ("FAILED", None)


async def test_a_failing_message_waits_for_its_workflow_until_it_is_started(outbox: Outbox) -> None:
    position = await failing(outbox)
    await failing(outbox, B, delay_seconds=None)
    async with outbox.shop.database.read() as connection:
        (waiting,) = await retries.without_workflow(connection, SHARD, 10)
        assert await retries.without_workflow(connection, (SHARD + 1) % 4, 10) == []
    assert waiting.message_id == f"{position}-{outbox.endpoint_id}"
    assert (waiting.event_type, waiting.error_class) == ("waybill.order.reserved", "event")
    await outbox.shop.database.transact(lambda connection: retries.mark_workflow_started(connection, waiting))
    async with outbox.shop.database.read() as connection:
        assert await retries.without_workflow(connection, SHARD, 10) == []


async def stage_retrying(outbox: Outbox, endpoint_id: int, first: int, count: int) -> None:
    """So many failing messages in lanes of their own, none of which has a workflow."""
    await outbox.shop.sql(
        """
        INSERT INTO outbox_failures (endpoint_id, position, event_position, shard, lane, event_type, status, attempts,
            error_class, last_error, fingerprint)
        SELECT :endpoint, n, n, :shard, 'order:' || n, 'waybill.order.reserved', 'RETRYING', 1, 'event', 'no', 'f'
        FROM generate_series(CAST(:first AS int), :last) n
        """,
        endpoint=endpoint_id,
        shard=SHARD,
        first=first,
        last=first + count - 1,
    )


async def start(outbox: Outbox) -> list[int]:
    """Start the workflows that there are places for; answer of which messages."""
    async with outbox.shop.database.read() as connection:
        waiting = await retries.without_workflow(connection, SHARD, 1000)
    for each in waiting:
        await outbox.shop.database.transact(partial(retries.mark_workflow_started, failing=each))
    return [each.position for each in waiting]


PLACES = FAILURE_WORKFLOWS // SHARDS


async def test_a_shard_starts_no_more_workflows_than_it_has_places(outbox: Outbox) -> None:
    await stage_retrying(outbox, outbox.endpoint_id, 1, PLACES + 10)
    assert await start(outbox) == list(range(1, PLACES + 1))
    assert await start(outbox) == []
    # One was decided by an admin: its workflow still sleeps, and gives its place back only when it has seen that.
    await outbox.shop.sql("UPDATE outbox_failures SET status = 'IGNORED' WHERE position = 1")
    assert await start(outbox) == []
    assert await begin(outbox, 1) is not None
    assert await start(outbox) == [PLACES + 1]
    lost = "UPDATE outbox_failures SET workflow_started_at = now() - interval '1 hour' WHERE position = 2"
    await outbox.shop.sql(lost)
    assert await start(outbox) == [2], "its place is its own"


async def test_a_message_that_was_decided_and_whose_workflow_was_lost_keeps_no_place(outbox: Outbox) -> None:
    await stage_retrying(outbox, outbox.endpoint_id, 1, 1)
    assert await start(outbox) == [1]
    await outbox.shop.sql("""
        UPDATE outbox_failures SET status = 'IGNORED', workflow_started_at = now() - interval '1 hour'""")
    assert await start(outbox) == [1], "a workflow is started once more"
    assert await begin(outbox, 1) is not None, "and gives the place back"
    assert await outbox.shop.value("SELECT workflow_started_at FROM outbox_failures") is None


async def test_an_endpoint_with_many_failing_messages_takes_no_places_from_another(outbox: Outbox) -> None:
    await stage_retrying(outbox, outbox.endpoint_id, 1, PLACES + 10)
    assert len(await start(outbox)) == PLACES
    await stage_retrying(outbox, await outbox.webhook("other"), PLACES + 11, 2)
    await outbox.shop.sql("UPDATE outbox_failures SET workflow_started_at = NULL WHERE position = 1")
    assert await start(outbox) == [PLACES + 11]


@pytest.mark.parametrize(("attempts", "status"), [(6, "RETRYING"), (7, "FAILED")])
async def test_tries_that_kill_their_worker_come_to_an_end_too(outbox: Outbox, attempts: int, status: str) -> None:
    position = await failing(outbox)
    await outbox.shop.sql("UPDATE outbox_failures SET attempts = :n, workflow_started_at = now()", n=attempts)
    await long_begun(outbox, await begin(outbox, position))  # its worker died
    after = await begin(outbox, position)
    assert after is not None
    assert (after.status, after.message is None) == (status, status == "FAILED")
    told = await outbox.shop.sql("SELECT outcome FROM outbox_attempts ORDER BY attempt_id")
    assert told == [("failed",), ("interrupted",)]
    if status == "FAILED":
        assert await state(outbox) == ("FAILED", 8, "unknown")
        assert await outbox.shop.value("SELECT sum(failed_transitions) FROM outbox_shards") == 1
        assert await outbox.shop.value("SELECT workflow_started_at FROM outbox_failures") is None


# --- what an admin does

Decide = Callable[[Outbox, int], Awaitable[object]]


async def fix(outbox: Outbox, position: int) -> object:
    payload = {"orderId": A, "status": "RESERVED", "note": "mended"}
    return await outbox.shop.database.transact(
        lambda c: decisions.fix(c, position, outbox.endpoint_id, payload, actor="admin", reason="typo")
    )


DECISIONS = pytest.mark.parametrize("decide", [Outbox.replay, Outbox.ignore, fix], ids=lambda each: each.__name__)


@DECISIONS
async def test_while_a_try_is_in_flight_nobody_decides_and_nobody_else_tries(outbox: Outbox, decide: Decide) -> None:
    position = await failing(outbox)
    retry = await begin(outbox, position)
    before = await outbox.shop.contents()
    with pytest.raises(AttemptInFlight) as caught:
        await decide(outbox, position)
    assert retries.ATTEMPT_SECONDS < caught.value.seconds <= retries.LEASE_SECONDS
    other = await begin(outbox, position)
    assert other is not None
    assert (other.message, other.status, other.wait_seconds > retries.ATTEMPT_SECONDS) == (None, "RETRYING", True)
    assert await outbox.shop.contents() == before
    await end(outbox, retry, ErrorClass.EVENT)
    await decide(outbox, position)
    assert await outbox.shop.value("SELECT count(*) FROM admin_actions WHERE action LIKE 'outbox.%'") == 1


@DECISIONS
async def test_a_try_whose_worker_was_killed_keeps_an_admin_waiting_no_longer_than_its_lease(
    outbox: Outbox, decide: Decide
) -> None:
    position = await failing(outbox)
    await long_begun(outbox, await begin(outbox, position))
    await decide(outbox, position)
    told = await outbox.shop.sql("SELECT outcome FROM outbox_attempts ORDER BY attempt_id")
    assert told == [("failed",), ("interrupted",)]


async def test_a_replay_puts_the_message_and_its_lane_back_in_order(outbox: Outbox) -> None:
    epoch, failed, parked = await outbox.blocked(A, *STORY)
    assert await outbox.replay(failed[0]) is MessageStatus.PENDING
    assert await outbox.places([*failed, *parked]) == ["ready"] * 3
    assert [each.message.position for each in await outbox.claim(epoch)] == [*failed, *parked]


async def test_an_ignored_message_ends_and_its_lane_goes_on_in_order(outbox: Outbox) -> None:
    epoch, failed, parked = await outbox.blocked(A, *STORY)
    assert await outbox.ignore(failed[0]) is MessageStatus.IGNORED
    assert await outbox.places([*failed, *parked]) == ["IGNORED", "ready", "ready"]
    assert [each.message.position for each in await outbox.claim(epoch)] == parked
    assert await outbox.dispatched() == 0


@pytest.mark.parametrize("action", ["replay", "ignore"])
async def test_the_same_decision_again_changes_nothing_and_is_audited_once(outbox: Outbox, action: str) -> None:
    _, failed, _ = await outbox.blocked(A, *STORY)
    decide = outbox.replay if action == "replay" else outbox.ignore
    first = await decide(failed[0])
    before = await outbox.shop.contents()
    assert await decide(failed[0]) is first
    assert await outbox.shop.contents() == before
    audited = await outbox.shop.sql(
        "SELECT actor, target, reason, before, after FROM admin_actions WHERE action = :action",
        action=f"outbox.{action}",
    )
    target = f"message:{failed[0]}-{outbox.endpoint_id}"
    reason = {"replay": "mended", "ignore": "useless"}[action]
    assert audited == [("admin", target, reason, {"status": "FAILED", "attempts": 1}, {"status": first})]


async def test_many_admins_at_once_decide_once(outbox: Outbox) -> None:
    _, failed, parked = await outbox.blocked(A, *STORY)
    decisions = [outbox.replay(failed[0]) for _ in range(5)] + [outbox.ignore(failed[0]) for _ in range(5)]
    ends = await asyncio.gather(*decisions, return_exceptions=True)
    assert len({str(each) for each in ends if not isinstance(each, Exception)}) == 1
    assert all(isinstance(each, (MessageStatus, MessageSettled)) for each in ends)
    assert await outbox.shop.value("SELECT count(*) FROM admin_actions WHERE action LIKE 'outbox.%'") == 1
    assert await outbox.places(parked) == ["ready", "ready"]


@pytest.mark.parametrize("status", ["DELIVERED", "IGNORED"])
async def test_what_is_settled_cannot_be_replayed(outbox: Outbox, status: str) -> None:
    position = await failing(outbox)
    await outbox.shop.sql("UPDATE outbox_failures SET status = :status", status=status)
    before = await outbox.shop.contents()
    with pytest.raises(MessageSettled) as caught:
        await outbox.replay(position)
    assert caught.value.status == status
    assert await outbox.shop.contents() == before


async def test_a_message_that_never_failed_cannot_be_decided(outbox: Outbox) -> None:
    (healthy,) = await outbox.happen(A, "order.reserved")
    for position in (healthy, 4711):
        with pytest.raises(MessageMissing):
            await outbox.replay(position)
        with pytest.raises(MessageMissing):
            await outbox.ignore(position)
