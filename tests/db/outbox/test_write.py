"""Events, written with the change they tell of: a message for everyone who wants one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from db import order as orders
from db.outbox import notifications
from db.outbox.write import write_events
from domain.outbox import PUBLIC_TYPES, EventType, inventory_event, order_event, shard_of, zone_woken
from tests.db.outbox.outboxes import Outbox
from tests.db.shops import Shop, new_order

WORKFLOW = "workflow"


async def receivers(shop: Shop) -> dict[str, list[str]]:
    """What waits for each endpoint."""
    rows = await shop.sql("""
        SELECT e.name, log.event_type FROM outbox_messages m JOIN outbox_endpoints e USING (endpoint_id)
        JOIN outbox_events log ON log.position = m.event_position ORDER BY m.position
    """)
    names = {name for name, _ in rows}
    return {name: [each.removeprefix("waybill.") for other, each in rows if other == name] for name in names}


async def test_each_endpoint_gets_the_event_types_that_it_asked_for(shop: Shop) -> None:
    outbox = Outbox(shop, 0)
    await outbox.webhook("all")
    await outbox.webhook("none", [])
    await outbox.webhook("ends", ["waybill.order.cancelled", "waybill.order.expired"])
    await outbox.happen("o-1", "order.reserved", "order.cancelled")
    assert await receivers(shop) == {"all": ["order.reserved", "order.cancelled"], "ends": ["order.cancelled"]}


async def test_a_disabled_webhook_is_not_sent_to_but_its_messages_wait(shop: Shop) -> None:
    outbox = Outbox(shop, 0)
    await outbox.webhook("asleep", enabled=False)
    await outbox.happen("o-1", "order.reserved")
    assert await receivers(shop) == {"asleep": ["order.reserved"]}


@pytest.mark.parametrize("outside", [False, True])
async def test_workflows_are_told_only_what_happened_without_them(shop: Shop, outside: bool) -> None:
    await Outbox(shop, 0).happen("o-1", "order.expired", outside=outside)
    assert await receivers(shop) == ({WORKFLOW: ["order.expired"]} if outside else {})


MAILED = ("order.confirmed", "delivery.late", "order.delivered", "order.expired", "order.cancelled")


@pytest.mark.parametrize(
    ("email", "on"), [("ada@customer.example", True), ("ada@customer.example", False), (None, True)]
)
async def test_emails_are_written_while_email_is_on_for_orders_with_an_address(
    shop: Shop, email: str | None, on: bool
) -> None:
    await shop.database.transact(partial(notifications.switch_email, on=on))
    await shop.database.transact(partial(orders.reserve, order=replace(new_order("o-1", {}), email=email)))
    public = sorted(each.removeprefix("waybill.") for each in PUBLIC_TYPES if "inventory" not in each)
    await Outbox(shop, 0).happen("o-1", *public)
    expected = {"email": sorted(MAILED)} if on and email else {}
    assert {name: sorted(types) for name, types in (await receivers(shop)).items() if name == "email"} == expected


async def test_a_start_with_a_mail_server_forgets_why_the_last_one_was_given_up(shop: Shop) -> None:
    await shop.database.transact(partial(notifications.switch_email, on=True))
    await shop.sql(
        "UPDATE outbox_endpoints SET disabled_reason = 'it has failed for 5 days', open_until = now(),"
        " consecutive_failures = 7, failing_since = now(), last_error = 'no' WHERE kind = 'email'"
    )
    await shop.database.transact(partial(notifications.switch_email, on=True))
    assert await shop.sql(
        "SELECT enabled, disabled_reason, open_until, consecutive_failures, failing_since, last_error"
        " FROM outbox_endpoints WHERE kind = 'email'"
    ) == [(True, None, None, 0, None, None)]


async def test_emails_cost_the_business_transaction_no_statement_more(shop: Shop) -> None:
    async def statements() -> int:
        sent: list[str] = []

        async def write(connection: AsyncConnection) -> None:
            engine = connection.engine.sync_engine
            event.listen(engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
            await write_events(connection, [order_event(EventType.ORDER_CONFIRMED, "o-1", "o-1", {})])

        await shop.database.transact(write)
        return len(sent)

    assert await statements() == 2


async def test_what_is_internal_reaches_no_webhook(shop: Shop) -> None:
    await Outbox(shop, 0).webhook("all")
    await shop.database.transact(lambda connection: write_events(connection, [zone_woken("north")]))
    assert await receivers(shop) == {WORKFLOW: ["zone.woken"]}


async def test_events_are_numbered_in_the_order_they_happened(shop: Shop) -> None:
    types = ["order.reserved", "order.confirmed", "delivery.requested", "order.cancelled", "delivery.cancelled"] * 20
    positions = await Outbox(shop, 0).happen("o-1", *types)
    assert positions == sorted(positions)
    assert await shop.events("order:o-1") == types
    times = await shop.sql("SELECT occurred_at FROM outbox_events ORDER BY position")
    assert times == sorted(times)


async def test_an_event_is_logged_as_it_was_written(shop: Shop) -> None:
    event = inventory_event(EventType.INVENTORY_ADJUSTED, "Käse", {"stock": 3, "reason": None, "nested": [{"a": 0.5}]})
    await shop.database.transact(lambda connection: write_events(connection, [event]))
    logged = await shop.sql(
        "SELECT CAST(event_id AS text), event_type, subject, lane, shard, data, fixes FROM outbox_events"
    )
    shard = shard_of("sku:Käse")
    assert logged == [(event.event_id, "waybill.inventory.adjusted", "Käse", "sku:Käse", shard, dict(event.data), None)]


async def test_no_events_write_nothing(shop: Shop) -> None:
    await shop.database.transact(lambda connection: write_events(connection, []))
    assert await shop.value("SELECT count(*) FROM outbox_events") == 0


async def test_a_change_that_is_rolled_back_was_never_told(shop: Shop) -> None:
    await Outbox(shop, 0).webhook("all")

    async def change_and_fail(connection: object) -> None:
        await write_events(connection, [order_event(EventType.ORDER_RESERVED, "o-1", "o-1", {})])  # type: ignore[arg-type]
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await shop.database.transact(change_and_fail)
    assert await receivers(shop) == {}
    assert await shop.value("SELECT count(*) FROM outbox_events") == 0
