"""The breaker of an endpoint: who counts a failure, who may try again and when, and what ends it for good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

import pytest

from db.outbox import breaker, endpoints, relay, retries
from db.outbox.relay import StaleEpoch
from domain.outbox import Endpoint, ErrorClass
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


async def take_probe(outbox: Outbox, endpoint: Endpoint) -> datetime | None:
    return await outbox.shop.database.transact(
        lambda c: breaker.take_probe(c, endpoint.endpoint_id, endpoint.consecutive_failures)
    )


async def probing(outbox: Outbox) -> tuple[Endpoint, datetime]:
    """The endpoint, as whoever has just taken its probe sees it, and until when that is to last."""
    await outbox.shop.sql(DUE)
    [endpoint] = await seen(outbox)
    until = await take_probe(outbox, endpoint)
    assert until is not None
    return endpoint, until


async def close(outbox: Outbox, until: datetime, fence: tuple[int, int] | None = None) -> bool:
    """The probe passed."""
    return await outbox.shop.database.transact(
        lambda connection: breaker.close_breaker(connection, outbox.endpoint_id, until, fence)
    )


async def test_of_several_relays_that_see_the_same_failure_one_counts_it(outbox: Outbox) -> None:
    await outbox.happen(A, "order.reserved")
    [endpoint] = await seen(outbox)
    for error in ("first", "second"):
        await fail(outbox, endpoint, error)
    assert await outbox.shop.sql(STATE) == [(1, "first", True)]
    assert await seen(outbox) == []
    await outbox.shop.sql(DUE)
    [due] = await seen(outbox)
    assert (due.probing, due.consecutive_failures) == (True, 1)
    assert await close(outbox, (await probing(outbox))[1])
    assert await outbox.shop.sql(STATE) == [(0, None, False)]


async def test_of_all_who_find_a_probe_due_one_may_try(outbox: Outbox) -> None:
    await outbox.happen(A, "order.reserved")
    [endpoint] = await seen(outbox)
    assert not await take_probe(outbox, endpoint)  # nothing is open
    await fail(outbox, endpoint)
    await outbox.shop.sql(DUE)
    [due] = await seen(outbox)
    taken = await asyncio.gather(*(take_probe(outbox, due) for _ in range(6)))
    assert sum(each is not None for each in taken) == 1
    assert await seen(outbox) == []
    # Whoever tried it may have died: after a while somebody else may.
    assert 15 < await outbox.shop.value(SECONDS) <= 20


async def opened_anew(outbox: Outbox, endpoint: Endpoint) -> None:
    await fail(outbox, endpoint, "HTTP 502")


async def enabled_and_opened_anew(outbox: Outbox, endpoint: Endpoint) -> None:
    await outbox.shop.database.transact(lambda c: endpoints.enable_webhook(c, "shop", actor="admin", reason=None))
    [enabled] = await seen(outbox)
    await fail(outbox, enabled, "HTTP 502")


async def probed_by_somebody_else(outbox: Outbox, endpoint: Endpoint) -> None:
    await probing(outbox)


@pytest.mark.parametrize("meanwhile", [opened_anew, enabled_and_opened_anew, probed_by_somebody_else])
async def test_a_probe_that_passes_late_does_not_close_what_was_opened_since(
    outbox: Outbox, meanwhile: Callable[[Outbox, Endpoint], Awaitable[None]]
) -> None:
    await outbox.happen(A, "order.reserved")
    await fail(outbox, (await seen(outbox))[0])
    endpoint, until = await probing(outbox)
    await meanwhile(outbox, endpoint)
    before = await outbox.shop.contents()
    assert not await close(outbox, until)
    assert await outbox.shop.contents() == before


async def test_a_relay_that_lost_its_shard_in_a_probe_closes_nothing(outbox: Outbox) -> None:
    await outbox.happen(A, "order.reserved")
    await fail(outbox, (await seen(outbox))[0])
    epoch = await outbox.take()
    _, until = await probing(outbox)
    await outbox.take("successor")
    before = await outbox.shop.contents()
    with pytest.raises(StaleEpoch):
        await close(outbox, until, (SHARD, epoch))
    assert await outbox.shop.contents() == before
    assert await close(outbox, until, (SHARD, epoch + 1))


@pytest.mark.parametrize("error_class", [None, ErrorClass.EVENT])
async def test_nor_does_a_retry_that_ends_late(outbox: Outbox, error_class: ErrorClass | None) -> None:
    (position,) = await outbox.happen(A, "order.reserved")
    epoch = await outbox.take()
    (claimed,) = await outbox.claim(epoch)
    await fail(outbox, (await seen(outbox))[0])
    await outbox.fail(epoch, claimed)
    await outbox.shop.sql(DUE)
    database = outbox.shop.database
    begun = await database.transact(lambda c: retries.begin_retry(c, position, outbox.endpoint_id))
    assert begun is not None
    message, endpoint = begun.message, begun.endpoint
    assert message is not None
    assert endpoint is not None
    await opened_anew(outbox, endpoint)
    if error_class is None:
        await database.transact(lambda c: retries.retry_delivered(c, message, endpoint))
    else:
        await database.transact(
            lambda c: retries.retry_failed(c, message, endpoint, error_class, "HTTP 400", 9.0, in_doubt=False)
        )
    assert await outbox.shop.sql(STATE) == [(2, "HTTP 502", True)]


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
    await close(outbox, (await probing(outbox))[1])
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
