"""E-mail on the real stack: who is told what, and who is not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest_asyncio
from temporalio.client import Client

from db.retention import OLD_ROWS
from tests.houses import House, open_house
from tests.mailboxes import Mailbox
from tests.receivers import Receiver
from tests.waiting import eventually

ADA, BOB, EVE = (f"{name}@customer.example" for name in ("ada", "bob", "eve"))


@pytest_asyncio.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    """A mail server that takes everything."""
    async with Mailbox() as opened:
        yield opened


async def test_customers_with_an_address_are_told_what_becomes_of_their_orders(
    database_url: str, client: Client, installation: str, mailbox: Mailbox, receiver: Receiver
) -> None:
    mail: dict[str, Any] = {"smtp_url": mailbox.url, "mail_from": "orders@shop.example"}
    async with open_house(database_url, client, installation, promise_seconds=1, **mail) as house:
        await house.webhook("shop", receiver.url)
        await house.product("tea", 9)
        await house.order("k-1", {"tea": 1}, email=EVE, holdSeconds=1)
        cancelled = await house.reserved("k-2", {"tea": 1}, email=BOB)
        await house.call("POST", f"/api/orders/{cancelled}/cancel", role="client")
        delivery = await house.confirmed("k-3", email=ADA)
        nobodys = await house.confirmed("k-4")
        await mailbox.holds(4)  # one of them that the delivery is late
        await house.courier("c-1")
        for each in (delivery, nobodys):
            await house.delivery_becomes(each, "ASSIGNED")
            for action in ("pickup", "complete"):
                await house.act(each, action, "c-1")
        await mailbox.holds(5)
        assert mailbox.got(EVE) == ["Your order has expired"]
        assert mailbox.got(BOB) == ["Your order was cancelled"]
        assert mailbox.got(ADA) == ["Your order is confirmed", "Your order is late", "Your order was delivered"]
        assert {recipient for each in mailbox.mails for recipient in each.recipients} == {ADA, BOB, EVE}
        assert len({each.message_id for each in mailbox.mails}) == 5
        await receiver.got(*("order.reserved", "order.cancelled"), lane=cancelled)
        assert not any("@customer.example" in json.dumps(each.event) for each in receiver.requests)
        await house.invariants_hold()
        [[told]] = await house.sql("SELECT count(*) FROM notifications WHERE sent_at IS NOT NULL AND attempts = 1")
        assert told == 5


async def test_a_dead_mail_server_holds_up_nobody_but_the_emails_which_go_when_it_is_back(
    database_url: str, client: Client, installation: str, mailbox: Mailbox, receiver: Receiver
) -> None:
    mail: dict[str, Any] = {"smtp_url": mailbox.url, "mail_from": "orders@shop.example"}
    async with open_house(database_url, client, installation, **mail) as house:
        await house.webhook("shop", receiver.url)
        await house.product("tea", 9)
        mailbox.replies = {"MAIL": "550 we know no such sender"}
        await house.confirmed("k-1", email=ADA)

        async def breaker_is_open() -> bool:
            [[opened]] = await house.sql("SELECT open_until IS NOT NULL FROM outbox_endpoints WHERE kind = 'email'")
            return bool(opened)

        await eventually(breaker_is_open)
        await receiver.got("inventory.adjusted", "order.reserved", "order.confirmed", "delivery.requested")
        assert await house.metric("ops_outbox_failed_events") == 0
        mailbox.replies = {}
        await mailbox.holds(1)
        assert mailbox.got(ADA) == ["Your order is confirmed"]


async def test_nothing_is_written_while_email_is_off_and_each_start_of_a_worker_says_whether_it_is(
    database_url: str, client: Client, installation: str, mailbox: Mailbox
) -> None:
    waiting = "SELECT count(*) FROM outbox_messages JOIN outbox_endpoints USING (endpoint_id) WHERE kind = 'email'"
    mail: dict[str, Any] = {"smtp_url": mailbox.url, "mail_from": "orders@shop.example"}
    async with open_house(database_url, client, installation, **mail) as house:
        await house.product("tea", 9)
        await house.confirmed("k-1", email=ADA)
        await mailbox.holds(1)
    async with open_house(database_url, client, installation) as house:
        assert await house.sql("SELECT enabled FROM outbox_endpoints WHERE kind = 'email'") == [(False,)]
        await house.confirmed("k-2", email=BOB)
        assert await house.sql(waiting) == [(0,)]
    assert (mailbox.got(ADA), mailbox.got(BOB)) == (["Your order is confirmed"], [])


async def test_retention_runs_by_schedule_and_health_shows_its_last_run(house: House) -> None:
    handle = house.temporal.get_schedule_handle(house.names.retention_schedule)
    [interval] = (await handle.describe()).schedule.spec.intervals
    assert interval.every == timedelta(hours=1)
    await handle.trigger()

    async def ran() -> Any:
        health = (await house.get("/api/admin/ops/health"))["retention"]
        return health if health["succeeded"] else None

    health = await eventually(ran)
    assert health["lastResult"] == dict.fromkeys(OLD_ROWS, 0)
    assert (health["lastError"], health["failed"]) == (None, 0)
