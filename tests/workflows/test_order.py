"""The order's workflow: what it costs, what its timers do, and how it goes on when its transactions fail."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle
from temporalio.service import RPCError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.order import OrderActivities
from db import order as orders
from db.engine import Database, create_engine
from domain.ids import SEARCH_ATTRIBUTES
from domain.ids import order_id as derive_order_id
from domain.order import Line, NewOrder, OrderState, OrderStatus, Place
from tests.houses import House
from tests.replays import replay
from tests.waiting import eventually
from workflows.client import add_search_attributes
from workflows.order import OrderWorkflow

HOLD_SECONDS = 900


async def _events(handle: WorkflowHandle[OrderWorkflow, OrderStatus]) -> Counter[str]:
    history = await handle.fetch_history()
    return Counter(EventType.Name(event.event_type).removeprefix("EVENT_TYPE_") for event in history.events)


async def test_reserve_and_confirm_cost_2_workflow_tasks_and_at_most_17_events(house: House) -> None:
    await house.product("tea", 5)
    order_id = await house.reserved("k-1", {"tea": 1})
    assert (await house.call("POST", f"/api/orders/{order_id}/confirm")).status_code == 200
    events = await _events(house.workflow(order_id))
    assert events["WORKFLOW_TASK_SCHEDULED"] == 2
    assert events.total() <= 17


async def test_asking_again_for_what_was_done_writes_no_history(house: House) -> None:
    await house.product("tea", 5)
    order_id = await house.reserved("k-1", {"tea": 1})
    await house.call("POST", f"/api/orders/{order_id}/confirm")
    before = await _events(house.workflow(order_id))
    await house.order("k-1", {"tea": 1})
    await house.call("POST", f"/api/orders/{order_id}/confirm")
    refused = await house.call("POST", f"/api/orders/{order_id}/extend", {"holdSeconds": 60})
    assert refused.json()["type"] == "/problems/order-confirmed"
    assert await _events(house.workflow(order_id)) == before


async def test_the_temporal_ui_reads_like_a_story(house: House) -> None:
    await house.product("tea", 5)
    address = {"lat": 1, "lng": 2, "address": "Secret Street 1"}
    order_id = await house.reserved("k-1", {"tea": 1}, email="someone@example.com", dropoff=address)
    handle = house.workflow(order_id)
    description = await handle.describe()
    assert await description.static_summary() == "1 line to zone north"
    attributes = {key.name: value for key, value in description.typed_search_attributes}
    assert attributes["WaybillOrderStatus"] == "RESERVED"
    assert attributes["WaybillZone"] == "north"
    metadata = await handle.query("__temporal_workflow_metadata")
    assert metadata.current_details.startswith("**RESERVED**")
    await house.call("POST", f"/api/orders/{order_id}/cancel")

    async def closed() -> bool:
        described = await handle.describe()
        shown = {key.name: value for key, value in described.typed_search_attributes}
        return described.close_time is not None and shown["WaybillOrderStatus"] == "CANCELLED"

    await eventually(closed)
    for told in (str(attributes), await description.static_summary() or "", str(metadata), handle.id):
        assert "someone@" not in told
        assert "Secret" not in told


async def test_a_transaction_that_keeps_failing_locally_goes_on_as_a_visible_activity(house: House) -> None:
    await house.product("tea", 5)
    lock = text("SELECT * FROM products FOR UPDATE")
    handle = house.workflow(derive_order_id("client", "k-1"))

    async def scheduled() -> bool:
        with contextlib.suppress(RPCError):
            return (await _events(handle))["ACTIVITY_TASK_SCHEDULED"] > 0
        return False

    async def while_the_product_is_locked(connection: AsyncConnection) -> asyncio.Task[httpx.Response]:
        await connection.execute(lock)
        asking = asyncio.create_task(house.order("k-1", {"tea": 1}))
        await eventually(scheduled)
        return asking

    asking = await house.database.transact(while_the_product_is_locked)
    answer = await asking
    assert (answer.status_code, answer.json()["status"]) == (201, "RESERVED")
    assert await house.stock("tea") == (5, 1)
    # Another worker takes over from the history alone.
    await replay([handle])


@pytest_asyncio.fixture(scope="module")
async def time_skipping() -> AsyncIterator[WorkflowEnvironment]:
    """A Temporal server whose clock leaps over the timers that are waited for."""
    binary = Path(sys.executable).parent / "temporal-test-server"
    async with await WorkflowEnvironment.start_time_skipping(test_server_existing_path=str(binary)) as environment:
        await add_search_attributes(environment.client, SEARCH_ATTRIBUTES)
        yield environment


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The test's database, with a product in it."""
    database = Database(create_engine(database_url))
    add = text("INSERT INTO products (sku, name, stock, ledger_stock) VALUES ('tea', 'Tea', 5, 5)")
    await database.transact(lambda connection: connection.execute(add))
    yield database
    await database.close()


@pytest_asyncio.fixture
async def held(
    time_skipping: WorkflowEnvironment, database: Database, installation: str
) -> AsyncIterator[WorkflowHandle[OrderWorkflow, OrderStatus]]:
    """The workflow of an order that holds its units for 15 minutes."""
    activities = OrderActivities(database, promise_seconds=3600)
    order = NewOrder(installation, "hash", "c-1", "north", [Line("tea", 2)], Place(1, 2), HOLD_SECONDS)
    async with Worker(
        time_skipping.client,
        task_queue=installation,
        workflows=[OrderWorkflow],
        activities=[activities.reserve_order, activities.expire_order, activities.extend_order],
    ):
        handle = await time_skipping.client.start_workflow(
            OrderWorkflow.run, order, id=installation, task_queue=installation
        )
        await handle.execute_update(OrderWorkflow.reserved, "hash")
        yield handle
        if (await handle.describe()).close_time is None:
            await handle.terminate("the test is over")


async def _row(database: Database, order_id: str) -> OrderState:
    async with database.read() as connection:
        return await orders.load_state(connection, order_id)


async def test_a_15_minute_hold_ends_after_15_minutes(
    time_skipping: WorkflowEnvironment, database: Database, held: WorkflowHandle[OrderWorkflow, OrderStatus]
) -> None:
    await time_skipping.sleep(timedelta(minutes=14, seconds=55))
    assert (await _events(held))["TIMER_FIRED"] == 0
    # The database's clock does not leap: let its deadline come at the same moment.
    due = text("UPDATE reservations SET expires_at = now()")
    await database.transact(lambda connection: connection.execute(due))
    assert await held.result() is OrderStatus.EXPIRED
    assert (await _events(held))["TIMER_FIRED"] == 1
    assert (await _row(database, held.id)).stage is OrderStatus.EXPIRED


async def test_the_databases_clock_decides_when_a_hold_ends(
    time_skipping: WorkflowEnvironment, database: Database, held: WorkflowHandle[OrderWorkflow, OrderStatus]
) -> None:
    await time_skipping.sleep(timedelta(minutes=15, seconds=5))

    async def asleep_again() -> bool:
        return (await _events(held))["TIMER_STARTED"] == 2

    await eventually(asleep_again)
    assert (await _row(database, held.id)).stage is OrderStatus.RESERVED


async def test_an_extended_hold_gets_a_new_timer_at_once(
    time_skipping: WorkflowEnvironment, database: Database, held: WorkflowHandle[OrderWorkflow, OrderStatus]
) -> None:
    extended = await held.execute_update(OrderWorkflow.extend, 7200)
    assert extended.seconds_left is not None
    assert 7190 < extended.seconds_left <= 7200
    await time_skipping.sleep(timedelta(minutes=60))
    assert (await _events(held))["TIMER_FIRED"] == 0
