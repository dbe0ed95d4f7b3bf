"""Whatever happened to a workflow, another worker can take it over from its history alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from tests.houses import House
from tests.receivers import Receiver
from tests.replays import replay
from tests.waiting import eventually
from worker import WORKFLOWS

OPS = "/api/admin/ops"
OLD = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "histories").glob("*.json"))}
"""Histories of the version before, one event a line, without the workers' names."""


async def test_every_kind_of_workflow_is_taken_over_wherever_it_stands(house: House, receiver: Receiver) -> None:
    receiver.answer = lambda event: 400 if event["type"] == "waybill.order.cancelled" else 200
    await house.webhook("shop", receiver.url)
    await house.product("tea", 10)
    await house.courier("ann")
    delivery_id = await house.confirmed("k-delivered")
    await house.delivery_becomes(delivery_id, "ASSIGNED")
    for action in ("pickup", "complete"):
        assert (await house.act(delivery_id, action, "ann")).status_code == 200
    cancelled = await house.reserved("k-cancelled", {"tea": 1})
    await house.call("POST", f"/api/orders/{cancelled}/cancel")
    expired = await house.reserved("k-expired", {"tea": 1}, holdSeconds=1)
    await house.order("k-rejected", {"tea": 100})
    await house.reserved("k-open", {"tea": 1})
    await house.status_becomes(expired, "EXPIRED")
    for call, body in (
        ("reservations/sweep", {}),
        ("cross-check", {}),
        ("snapshots", {}),
        ("inventory/reconcile", {"dryRun": True, "reason": "look"}),
    ):
        assert (await house.call("POST", f"{OPS}/{call}", body)).status_code == 202, call

    async def all_kinds() -> list[Any]:
        ours = f"WorkflowId STARTS_WITH '{house.names.order('').removesuffix('order-')}'"
        seen = [each async for each in house.temporal.list_workflows(ours)]
        # All but the bulk replay, which needs FAILED messages, and retention, which only its schedule starts.
        return seen if len({each.workflow_type for each in seen}) == len(WORKFLOWS) - 2 else []

    seen = await eventually(all_kinds, 20)
    await replay(house.temporal.get_workflow_handle(each.id, run_id=each.run_id) for each in seen)


async def test_an_order_whose_steps_each_outlasted_their_local_time_is_taken_over(house: House) -> None:
    await house.product("tea", 10)
    order_id = await house.reserved("k-1", {"tea": 1})
    handle = house.workflow(order_id)

    async def normal_activities() -> int:
        return sum(
            event.HasField("activity_task_scheduled_event_attributes")
            for event in (await handle.fetch_history()).events
        )

    async def while_the_order_is_locked(connection: AsyncConnection) -> asyncio.Task[Any]:
        await connection.execute(text("SELECT FROM orders FOR UPDATE"))
        asking = asyncio.create_task(house.call("POST", f"/api/orders/{order_id}/confirm"))
        await eventually(normal_activities)
        return asking

    asking = await house.database.transact(while_the_order_is_locked)
    assert (await asking).json()["status"] == "CONFIRMED"
    await replay([handle])


@pytest.mark.parametrize("name", OLD)
async def test_a_workflow_that_the_version_before_began_is_taken_over(name: str) -> None:
    await Replayer(workflows=WORKFLOWS).replay_workflow(WorkflowHistory.from_json(name, OLD[name]))
