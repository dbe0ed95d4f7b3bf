"""The breaker of an endpoint: who counts a failure, who may try again and when, and what ends it for good."""

from __future__ import annotations

import asyncio

import pytest

from db.outbox import breaker, endpoints, relay
from domain.outbox import Endpoint
from tests.db.outbox.outboxes import SHARD, A, Outbox

STATE = "SELECT consecutive_failures, last_error, open_until IS NOT NULL FROM outbox_endpoints WHERE name = 'shop'"
SECONDS = "SELECT round(extract(epoch FROM open_until - now()))::int FROM outbox_endpoints WHERE name = 'shop'"
DUE = "UPDATE outbox_endpoints SET open_until = now() WHERE name = 'shop'"


async def seen(outbox: Outbox) -> list[Endpoint]:
    """The endpoints that a relay may send to, or try."""
    async with outbox.shop.database.read() as connection:
        return await relay.ready_endpoints(connection, SHARD)


async def fail(
    outbox: Outbox, endpoint: Endpoint, error: str = "HTTP 503", *, gone: bool = False, asked_seconds: float = 0.0
) -> None:
    """The endpoint failed as it was seen."""
    await outbox.shop.database.transact(
        lambda c: breaker.open_breaker(c, endpoint, error, gone=gone, retry_after_seconds=asked_seconds)
    )


async def take_probe(outbox: Outbox, endpoint: Endpoint) -> bool:
    until = await outbox.shop.database.transact(
        lambda c: breaker.take_probe(c, endpoint.endpoint_id, endpoint.consecutive_failures)
    )
    return until is not None


async def test_of_several_relays_that_see_the_same_failure_one_counts_it(outbox: Outbox) -> None:
    await outbox.happen(A, "order.reserved")
    [endpoint] = await seen(outbox)
    for error in ("first", "second"):
        await fail(outbox, endpoint, error)
    assert await outbox.shop.sql(STATE) == [(1, "first", True)]
    assert await seen(outbox) == []
    await outbox.shop.sql(DUE)
    [probing] = await seen(outbox)
    assert (probing.probing, probing.consecutive_failures) == (True, 1)
    await outbox.shop.database.transact(lambda connection: breaker.close_breaker(connection, outbox.endpoint_id))
    assert await outbox.shop.sql(STATE) == [(0, None, False)]


async def test_of_all_who_find_a_probe_due_one_may_try(outbox: Outbox) -> None:
    await outbox.happen(A, "order.reserved")
    [endpoint] = await seen(outbox)
    assert not await take_probe(outbox, endpoint)  # nothing is open
    await fail(outbox, endpoint)
    await outbox.shop.sql(DUE)
    [probing] = await seen(outbox)
    assert sorted(await asyncio.gather(*(take_probe(outbox, probing) for _ in range(6)))) == [*[False] * 5, True]
    assert await seen(outbox) == []
    # Whoever tried it may have died: after a while somebody else may.
    assert 15 < await outbox.shop.value(SECONDS) <= 20


@pytest.mark.parametrize(("asked_seconds", "waited_seconds"), [(0.0, 1), (0.5, 1), (120.0, 120)])
async def test_a_receivers_retry_after_lengthens_the_pause_and_never_shortens_it(
    outbox: Outbox, asked_seconds: float, waited_seconds: int
) -> None:
    await outbox.happen(A, "order.reserved")
    [endpoint] = await seen(outbox)
    await fail(outbox, endpoint, asked_seconds=asked_seconds)
    assert await outbox.shop.value(SECONDS) == waited_seconds


async def test_one_that_came_back_a_moment_ago_is_known_as_recovering(outbox: Outbox) -> None:
    await outbox.happen(A, "order.reserved")
    [endpoint] = await seen(outbox)
    assert not endpoint.recovering  # it is new, and was never away
    await fail(outbox, endpoint)
    await outbox.shop.database.transact(lambda connection: breaker.close_breaker(connection, outbox.endpoint_id))
    assert [each.recovering for each in await seen(outbox)] == [True]
    await outbox.shop.sql(
        "UPDATE outbox_endpoints SET created_at = now() - interval '1 hour',"
        " reachable_since = now() - interval '2 minutes' WHERE name = 'shop'"
    )
    assert [each.recovering for each in await seen(outbox)] == [False]


@pytest.mark.parametrize(
    ("gone", "failing_for", "reason"),
    [
        (True, None, "it answered 410 Gone"),
        (False, "5 days 1 minute", "it has failed for 5 days"),
        (False, "4 days 23 hours", None),
    ],
)
async def test_410_or_five_days_of_failing_disable_an_endpoint_until_it_is_enabled(
    outbox: Outbox, gone: bool, failing_for: str | None, reason: str | None
) -> None:
    shop = outbox.shop
    await outbox.happen(A, "order.reserved")
    [endpoint] = await seen(outbox)
    if failing_for:
        since = "UPDATE outbox_endpoints SET failing_since = now() - CAST(:ago AS text)::interval WHERE name = 'shop'"
        await shop.sql(since, ago=failing_for)
    await fail(outbox, endpoint, gone=gone)
    assert await shop.value("SELECT disabled_reason FROM outbox_endpoints WHERE name = 'shop'") == reason
    await shop.sql(DUE)
    assert len(await seen(outbox)) == (0 if reason else 1)
    await outbox.webhook("shop")  # an admin's PUT alone does not send again
    assert len(await seen(outbox)) == (0 if reason else 1)
    await shop.database.transact(lambda c: endpoints.enable_webhook(c, "shop", actor="admin", reason="moved back"))
    [enabled] = await seen(outbox)
    assert (enabled.probing, enabled.consecutive_failures) == (False, 0)
    assert await shop.value("SELECT failing_since FROM outbox_endpoints WHERE name = 'shop'") is None


async def test_the_internal_sink_is_tried_for_ever_for_no_admin_can_enable_it(outbox: Outbox) -> None:
    await outbox.happen(A, "delivery.requested", outside=True)
    await outbox.shop.sql("UPDATE outbox_endpoints SET failing_since = now() - interval '6 days'")
    [internal] = [each for each in await seen(outbox) if each.name == "workflow"]
    await fail(outbox, internal)
    await outbox.shop.sql("UPDATE outbox_endpoints SET open_until = now()")
    assert "workflow" in [each.name for each in await seen(outbox)]
