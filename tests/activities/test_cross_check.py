"""The cross-check: rows and workflows are made to agree both ways, and never too eagerly."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError

from activities.standing import ForeignWorkflows
from db import order as orders
from domain.ops import pause_note
from local.postgres import EmbeddedPostgres
from tests.houses import House, open_house
from tests.receivers import Receiver
from tests.servers import fresh_database
from tests.waiting import eventually
from worker import running_worker

RUNNING = WorkflowExecutionStatus.RUNNING


@pytest_asyncio.fixture(name="house")
async def _house(house: House) -> House:
    """A house whose start-up pass is over: what a test stages is for the pass that it asks for."""
    await house.temporal.get_workflow_handle(house.names.cross_check("after-loss")).result()
    return house


async def visible(house: House, count: int) -> None:
    """Wait until Temporal's visibility lists so many running orders of the house."""
    prefix = house.names.order("")
    query = f"ExecutionStatus = 'Running' AND WorkflowId STARTS_WITH '{prefix}'"

    async def listed() -> bool:
        return (await house.temporal.count_workflows(query)).count == count

    await eventually(listed, 30)


async def cross_check(house: House) -> Any:
    """Ask for a pass as an admin does; answer its result. Raises WorkflowFailureError where a guard stopped it."""
    answer = await house.call("POST", "/api/admin/ops/cross-check", {"reason": "runbook"})
    assert answer.status_code == 202
    return await house.temporal.get_workflow_handle(answer.json()["workflow"]["id"]).result()


async def is_running(house: House, workflow_id: str) -> bool:
    return (await house.temporal.get_workflow_handle(workflow_id).describe()).status is RUNNING


async def test_an_open_order_gets_its_workflow_again_at_the_stage_of_its_row(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url)
    await house.product("tea", 5)
    reserved = await house.reserved("k-1", {"tea": 1})
    confirmed = (await house.get(f"/api/deliveries/{await house.confirmed('k-2')}"))["orderId"]
    ended = await house.reserved("k-3", {"tea": 1})
    await house.call("POST", f"/api/orders/{ended}/cancel")
    for order_id in (reserved, confirmed):
        await house.workflow(order_id).terminate("staged")
    await visible(house, 0)
    result = await cross_check(house)
    assert sorted(result["orders_restarted"]) == sorted([reserved, confirmed])
    await visible(house, 2)
    assert (await cross_check(house))["orders_told"] == []  # they show the stage of their row

    assert (await house.call("POST", f"/api/orders/{reserved}/confirm")).json()["status"] == "CONFIRMED"
    await house.courier("ada")
    for order_id in (reserved, confirmed):
        delivery_id = (await house.get(f"/api/orders/{order_id}"))["deliveryId"]
        await house.delivery_becomes(delivery_id, "ASSIGNED")
        await house.act(delivery_id, "pickup", "ada")
        await house.act(delivery_id, "complete", "ada")

        async def closed(order_id: str = order_id) -> bool:
            return not await is_running(house, house.names.order(order_id))

        await eventually(closed)
    assert (await cross_check(house))["orders_restarted"] == []
    action = (await house.get("/api/admin/ops/actions"))["items"][0]
    assert (action["action"], action["reason"]) == ("cross_check", "runbook")
    await house.invariants_hold()


async def test_a_workflow_behind_its_row_catches_up(house: House) -> None:
    await house.product("tea", 5)
    behind, over = await house.reserved("k-1", {"tea": 1}), await house.reserved("k-2", {"tea": 1})
    await visible(house, 2)
    # As after a power cut that took Temporal's last second: the rows moved, and nobody remembers.
    await house.database.transact(lambda connection: orders.confirm(connection, behind, 3600))
    await house.database.transact(lambda connection: orders.cancel(connection, over))
    assert sorted((await cross_check(house))["orders_told"]) == sorted([behind, over])

    async def caught_up() -> bool:
        description = await house.workflow(behind).describe()
        shown = {key.name: value for key, value in description.typed_search_attributes}
        closed = not await is_running(house, house.names.order(over))
        return closed and description.status is RUNNING and shown["WaybillOrderStatus"] == "CONFIRMED"

    await eventually(caught_up)


async def test_a_workflow_that_a_later_pass_still_sees_behind_breaks_the_promise(house: House) -> None:
    await house.product("tea", 5)
    order_id = await house.reserved("k-1", {"tea": 1})
    await visible(house, 1)
    await house.database.transact(lambda connection: orders.confirm(connection, order_id, 3600))
    assert (await cross_check(house))["orders_told"] == [order_id]
    assert (await house.get("/api/admin/ops/invariants"))["ok"], "it may just be listening"
    await age(house)

    async def listened() -> bool:
        description = await house.workflow(order_id).describe()
        shown = {key.name: value for key, value in description.typed_search_attributes}
        return bool(shown["WaybillOrderStatus"] != "RESERVED")

    await eventually(listened)
    await house.database.transact(lambda connection: orders.cancel(connection, order_id))
    assert (await cross_check(house))["orders_told"] == [order_id]
    broken = [each for each in (await house.get("/api/admin/ops/invariants"))["checks"] if not each["ok"]]
    assert [(each["name"], each["sample"]) for each in broken] == [
        ("workflows_and_rows_agree", [f"workflow_behind {order_id}"])
    ]
    await visible(house, 0)
    await cross_check(house)
    assert (await house.get("/api/admin/ops/invariants"))["ok"]


async def without_rows(house: House, order_ids: list[str]) -> None:
    for table in ("reservations", "orders"):
        await house.sql(f"DELETE FROM {table} WHERE order_id = ANY(CAST(:ids AS text[]))", ids=order_ids)
    await house.sql("UPDATE products SET reserved = 0")


async def age(house: House) -> None:
    """What the last pass saw was first seen 61 seconds earlier."""
    await house.sql("UPDATE disagreements SET first_seen_at = first_seen_at - interval '61 seconds'")


async def test_a_workflow_without_a_row_is_ended_but_not_before_its_time(
    database_url: str, client: Client, installation: str
) -> None:
    async with open_house(database_url, client, installation) as house:
        await house.product("tea", 5)
        order_id = await house.reserved("k-1", {"tea": 1})
        await visible(house, 1)
        await without_rows(house, [order_id])
        for _ in range(2):
            result = await cross_check(house)
            assert (result["orders_ended"], result["left"]) == ([], [f"workflow_without_order {order_id}"])
        assert (await house.get("/api/admin/ops/invariants"))["ok"]  # it has not lasted 30 s
        await age(house)
        assert (await cross_check(house))["orders_ended"] == []  # nor is it ten minutes old
        broken = [each for each in (await house.get("/api/admin/ops/invariants"))["checks"] if not each["ok"]]
        assert [(each["name"], each["sample"]) for each in broken] == [
            ("workflows_and_rows_agree", [f"workflow_without_order {order_id}"])
        ]
        assert await is_running(house, house.names.order(order_id))
    async with open_house(database_url, client, installation, cross_check_age_seconds=0) as house:
        await cross_check(house)

        async def ended() -> bool:
            return not await is_running(house, house.names.order(order_id))

        await eventually(ended)
        await visible(house, 0)
        await cross_check(house)
        assert (await house.get("/api/admin/ops/invariants"))["ok"]


async def test_above_20_of_a_kind_nothing_is_done_and_everybody_is_told(house: House) -> None:
    await house.product("tea", 50)
    order_ids = await asyncio.gather(*(house.reserved(f"k-{number}", {"tea": 1}) for number in range(21)))
    await asyncio.gather(*(house.workflow(order_id).terminate("staged") for order_id in order_ids))
    await visible(house, 0)
    with pytest.raises(WorkflowFailureError) as stopped:
        await cross_check(house)
    assert "21 open orders have no workflow" in str(stopped.value.cause.__cause__)
    assert not any([await is_running(house, house.names.order(order_id)) for order_id in order_ids])
    await age(house)
    assert await house.metric('ops_invariant_violations{invariant="workflows_and_rows_agree"}') == 21
    await house.call("POST", f"/api/orders/{order_ids[0]}/cancel")  # one fewer: within the bound
    assert len((await cross_check(house))["orders_restarted"]) == 20
    assert (await house.get("/api/admin/ops/invariants"))["ok"]


async def test_after_a_loss_of_temporal_every_open_order_relay_and_zone_lives_again(
    database_url: str, client: Client, installation: str, receiver: Receiver
) -> None:
    async with open_house(database_url, client, installation) as house:
        await house.product("tea", 50)
        await house.call("PATCH", "/api/admin/ops/assignment/settings/north", {"mode": "manual"})
        waiting = [await house.confirmed(f"k-{number}") for number in range(25)]
        await visible(house, 25)
    # Another namespace's worth of nothing: what Temporal knew of the house goes.
    prefix = f"{installation}-"
    async for execution in client.list_workflows(f"ExecutionStatus = 'Running' AND WorkflowId STARTS_WITH '{prefix}'"):
        await client.get_workflow_handle(execution.id).terminate("lost")
    await visible(house, 0)
    async with open_house(database_url, client, installation) as house:
        await visible(house, 25)
        await house.webhook("shop", receiver.url)
        await house.call("PATCH", "/api/admin/ops/assignment/settings/north", {"mode": "auto"})
        await house.courier("ada", capacity=30)
        for delivery_id in waiting:
            await house.delivery_becomes(delivery_id, "ASSIGNED")
        await house.invariants_hold()


async def test_beside_another_databases_workflows_nothing_is_started_and_nothing_ended(
    house: House, postgres: EmbeddedPostgres, template: str, client: Client, installation: str
) -> None:
    await house.product("tea", 5)
    order_id = await house.reserved("k-1", {"tea": 1})
    async with fresh_database(postgres, f"{installation}-new", template) as url:
        # A new, empty database that claims the same installation.
        async with open_house(url, client, installation, worker=False) as empty:
            await empty.sql("UPDATE installation SET database_id = gen_random_uuid()")
        with pytest.raises(ForeignWorkflows, match="another database of the installation"):
            async with running_worker(replace(house.settings, database_url=url), client):
                pass
    assert await is_running(house, house.names.order(order_id))
    assert (await house.call("POST", f"/api/orders/{order_id}/confirm")).json()["status"] == "CONFIRMED"


async def test_a_lost_dispatch_and_a_lost_retry_live_again(house: House, receiver: Receiver) -> None:
    receiver.answer = lambda event: 400 if event["type"].endswith("adjusted") else 200
    await house.webhook("shop", receiver.url)
    await house.product("tea", 5)
    await house.call("PATCH", "/api/admin/ops/assignment/settings/north", {"batchWindowSeconds": 0})
    delivery_id = await house.confirmed("k-1")

    async def lost() -> str | None:
        items = (await house.get("/api/admin/ops/outbox/failures?status=RETRYING"))["items"]
        return items[0]["workflow"]["id"] if items and items[0]["workflow"]["status"] == "RUNNING" else None

    failure_workflow = await eventually(lost)
    assert failure_workflow is not None
    dispatch = house.names.dispatch("north")

    async def dispatching() -> bool:
        return dispatch in {each.id async for each in house.temporal.list_workflows(f"WorkflowId = '{dispatch}'")}

    await eventually(dispatching, 30)
    for workflow_id in (failure_workflow, dispatch):
        await house.temporal.get_workflow_handle(workflow_id).terminate("lost")

    async def gone() -> bool:
        query = "ExecutionStatus = 'Running' AND WorkflowId = "
        counts = [await house.temporal.count_workflows(f"{query}'{each}'") for each in (failure_workflow, dispatch)]
        return not any(each.count for each in counts)

    await eventually(gone, 30)
    result = await cross_check(house)
    assert result["zones_woken"] == ["north"]
    assert len(result["failures_restarted"]) == 1
    receiver.answer = lambda event: 200
    await house.courier("ada")
    await house.delivery_becomes(delivery_id, "ASSIGNED")

    async def retried() -> bool:
        return "inventory.adjusted" in receiver.types()

    await eventually(retried, 30)


async def test_an_operation_that_was_lost_goes_on(house: House) -> None:
    await house.product("tea", 5)
    await house.sql("UPDATE products SET reserved = 3")
    await house.sql("INSERT INTO reconciliations (operation_id, dry_run, actor, reason) VALUES ('r', false, 'a', 'b')")
    await house.sql("INSERT INTO snapshots (snapshot_id) VALUES ('s')")
    await house.sql("""
        INSERT INTO outbox_replays (operation_id, action, filter, dry_run, status, actor, reason)
        VALUES ('o', 'replay', '{}', false, 'RUNNING', 'a', 'b'), ('p', 'replay', '{}', false, 'PAUSED', 'a', 'b')""")
    assert sorted((await cross_check(house))["operations_restarted"]) == ["o", "r", "s"]

    async def done() -> bool:
        reconciliation = await house.get("/api/admin/ops/inventory/reconcile/r")
        snapshots = (await house.get("/api/admin/ops/snapshots"))["items"]
        replay = await house.get("/api/admin/ops/outbox/replays/o")
        statuses = [reconciliation["status"], replay["status"], *(each["status"] for each in snapshots)]
        return statuses == ["DONE"] * 3

    await eventually(done)
    await house.invariants_hold()


async def test_what_must_always_stand_is_restored_by_a_pass(house: House) -> None:
    relay = house.names.relay(0)
    await house.temporal.get_workflow_handle(relay).terminate("lost")
    await house.temporal.get_schedule_handle(house.names.sweep_schedule).delete()
    await cross_check(house)
    assert await is_running(house, relay)
    await house.temporal.get_schedule_handle(house.names.sweep_schedule).describe()


async def test_a_pause_lasts_until_the_time_that_its_reason_says_or_until_somebody_ends_it(house: House) -> None:
    now = datetime.now(UTC)
    reasons = {
        house.names.sweep_schedule: pause_note("drill", now - timedelta(seconds=1)),
        house.names.cross_check_schedule: pause_note("drill", now + timedelta(hours=1)),
        house.names.retention_schedule: "while we copy the disk",
    }
    for schedule_id, reason in reasons.items():
        await house.temporal.get_schedule_handle(schedule_id).pause(note=reason)
    await cross_check(house)
    descriptions = [await house.temporal.get_schedule_handle(each).describe() for each in reasons]
    assert [each.schedule.state.paused for each in descriptions] == [False, True, True]
    assert [each.schedule.state.note for each in descriptions[1:]] == list(reasons.values())[1:]


async def test_another_installations_orders_are_nobodys_business(
    house: House, postgres: EmbeddedPostgres, template: str, client: Client, installation: str
) -> None:
    """Its name begins like ours: `x-order` beside `x`."""
    async with (
        fresh_database(postgres, f"{installation}-order", template) as url,
        open_house(url, client, f"{installation}-order", cross_check_age_seconds=0) as other,
    ):
        await other.product("tea", 5)
        order_id = await other.reserved("k-1", {"tea": 1})
        await visible(other, 1)
        result = await cross_check(house)
        assert (result["orders_ended"], result["left"]) == ([], [])
        assert await is_running(other, other.names.order(order_id))
