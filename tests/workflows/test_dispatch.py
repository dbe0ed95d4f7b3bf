"""A zone's dispatch workflow: what its rounds cost, and its timer for the offer that ends first."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowExecutionDescription, WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.assignment import AssignmentActivities
from db.engine import Database, create_engine
from domain.ids import DISPATCH_RULE, DISPATCH_RULE_MEMO
from tests.db.fleets import Fleet
from tests.houses import House
from tests.waiting import eventually
from workflows.assignment import DispatchWorkflow

_EVENTS_A_ROUND = 12
"""With a timer for an offer: a signal, the timer's end and the next one's start, and three each for two workflow tasks
and the activity."""


async def _events(handle: WorkflowHandle[Any, Any]) -> Counter[str]:
    history = await handle.fetch_history()
    return Counter(EventType.Name(event.event_type).removeprefix("EVENT_TYPE_") for event in history.events)


async def _nobody_else_wakes_zones(fleet: Fleet) -> None:
    """The house has looked after its zones when it was opened."""

    async def done() -> bool:
        return (
            await fleet.sql("SELECT 1 FROM job_runs WHERE job = 'cross_check' AND last_finished_at > '-infinity'") != []
        )

    await eventually(done)


async def test_a_burst_of_200_deliveries_costs_2_workflow_tasks_and_10_events_a_round(house: House) -> None:
    fleet = Fleet(house.database)
    await _nobody_else_wakes_zones(fleet)
    await fleet.knobs(batch_window_seconds=2.5, max_batch=1000)
    await fleet.couriers(12, capacity=20)
    await fleet.deliveries(200, tell=True)

    async def all_assigned() -> bool:
        return await fleet.sql("SELECT 1 FROM deliveries WHERE status = 'PENDING'") == []

    await eventually(all_assigned, 30)
    handle = house.temporal.get_workflow_handle(house.names.dispatch("north"))

    async def at_rest() -> Counter[str] | None:
        events = await _events(handle)
        return events if events["WORKFLOW_TASK_COMPLETED"] >= 2 * events["ACTIVITY_TASK_SCHEDULED"] else None

    events = await eventually(at_rest)
    assert events is not None
    rounds = events["ACTIVITY_TASK_SCHEDULED"]
    assert rounds <= 2  # the second one for stragglers, on a machine that is busy
    assert events["WORKFLOW_TASK_SCHEDULED"] <= 2 * rounds
    assert events.total() <= 1 + 10 * rounds
    await fleet.holds_together()


async def test_an_offers_deadline_costs_one_timer_and_the_temporal_ui_says_what_is_waited_for(house: House) -> None:
    fleet = Fleet(house.database)
    await _nobody_else_wakes_zones(fleet)
    await fleet.knobs(batch_window_seconds=0, accept_window_seconds=1, max_offers=2)
    await fleet.couriers(3)
    [delivery] = await fleet.deliveries(1, tell=True)

    async def given_up() -> bool:
        return (await fleet.status(delivery))[0] == "NEEDS_ATTENTION"

    await eventually(given_up, 20)
    handle = house.temporal.get_workflow_handle(house.names.dispatch("north"))
    at_rest = "Last round: 0 given, 0 conflicts. Nobody is being asked."

    async def told() -> Any:
        metadata = await handle.query("__temporal_workflow_metadata")
        return metadata if metadata.current_details == at_rest else None

    metadata = await eventually(told)
    history = await handle.fetch_history()
    timers = [event for event in history.events if event.event_type == EventType.EVENT_TYPE_TIMER_STARTED]
    assert [each.user_metadata.summary.data for each in timers][-1:] == [b'"the next offer ends"']
    events = await _events(handle)
    rounds = events["ACTIVITY_TASK_SCHEDULED"]
    assert (rounds, events["TIMER_FIRED"]) == (3, 2)
    assert events["WORKFLOW_TASK_SCHEDULED"] == 2 * rounds
    # A signal woke the first round; a timer, which began and fired, each of the two others.
    assert events.total() == 1 + (1 + 9) + 2 * (2 + 9)
    assert "c-0" not in str(metadata)
    assert await (await handle.describe()).memo_value(DISPATCH_RULE_MEMO) == DISPATCH_RULE


@pytest_asyncio.fixture(scope="module")
async def time_skipping() -> AsyncIterator[WorkflowEnvironment]:
    """A Temporal server whose clock leaps over the timers that are waited for."""
    binary = Path(sys.executable).parent / "temporal-test-server"
    async with await WorkflowEnvironment.start_time_skipping(test_server_existing_path=str(binary)) as environment:
        yield environment


@pytest_asyncio.fixture
async def fleet(database_url: str) -> AsyncIterator[Fleet]:
    """A zone with two couriers, whose offers last 15 minutes."""
    database = Database(create_engine(database_url))
    fleet = Fleet(database)
    await fleet.knobs(batch_window_seconds=0, accept_window_seconds=900)
    await fleet.couriers(2)
    yield fleet
    await database.close()


@pytest.fixture
def memo() -> dict[str, int]:
    """What says by which rule the dispatch runs."""
    return {DISPATCH_RULE_MEMO: DISPATCH_RULE}


@pytest_asyncio.fixture
async def dispatch(
    time_skipping: WorkflowEnvironment, fleet: Fleet, installation: str, memo: dict[str, int]
) -> AsyncIterator[WorkflowHandle[Any, None]]:
    """The dispatch of that zone, asleep."""
    activities = AssignmentActivities(fleet.database)
    async with Worker(
        time_skipping.client,
        task_queue=installation,
        workflows=[DispatchWorkflow],
        activities=[activities.run_round],
    ):
        handle = await time_skipping.client.start_workflow(
            DispatchWorkflow.run, "north", id=installation, task_queue=installation, memo=memo
        )
        yield time_skipping.client.get_workflow_handle(handle.id)
        await time_skipping.client.get_workflow_handle(handle.id).terminate("the test is over")
    activities.close()


async def _waits_for_a_deadline(handle: WorkflowHandle[Any, None]) -> bool:
    return (await _events(handle))["TIMER_STARTED"] > 0


async def test_an_offer_of_15_minutes_ends_after_15_minutes_and_the_next_courier_is_asked(
    time_skipping: WorkflowEnvironment, fleet: Fleet, dispatch: WorkflowHandle[Any, None]
) -> None:
    [delivery] = await fleet.deliveries(1)
    await dispatch.signal(DispatchWorkflow.wake)
    await eventually(lambda: _waits_for_a_deadline(dispatch))
    _, first = await fleet.status(delivery)
    await time_skipping.sleep(timedelta(minutes=14, seconds=50))
    assert (await _events(dispatch))["TIMER_FIRED"] == 0
    # The database's clock does not leap: let its deadline come at the same moment.
    await fleet.deadline_passes()
    await time_skipping.sleep(timedelta(seconds=15))

    async def somebody_else_is_asked() -> bool:
        status, courier = await fleet.status(delivery)
        return status == "OFFERED" and courier != first

    await eventually(somebody_else_is_asked)
    assert await fleet.story(delivery) == ["offered", "expired", "offered"]


async def test_what_a_full_batch_left_does_not_wait_for_another_one(
    fleet: Fleet, dispatch: WorkflowHandle[Any, None]
) -> None:
    await fleet.knobs(max_batch=2)
    await fleet.deliveries(5)
    await dispatch.signal(DispatchWorkflow.wake)
    await eventually(lambda: _waits_for_a_deadline(dispatch))
    assert await fleet.sql("SELECT count(*) FROM deliveries WHERE status = 'OFFERED'") == [(5,)]
    history = await dispatch.fetch_history()
    scheduled = [each for each in history.events if each.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED]
    told = [each.user_metadata.summary.data.decode() for each in scheduled]
    assert told == ['"zone north"', '"zone north, at once"', '"zone north, at once"']
    events = await _events(dispatch)
    assert events["WORKFLOW_TASK_SCHEDULED"] <= 2 * len(told)


async def test_the_databases_clock_decides_when_an_offer_ends(
    time_skipping: WorkflowEnvironment, fleet: Fleet, dispatch: WorkflowHandle[Any, None]
) -> None:
    [delivery] = await fleet.deliveries(1)
    await dispatch.signal(DispatchWorkflow.wake)
    await eventually(lambda: _waits_for_a_deadline(dispatch))
    await time_skipping.sleep(timedelta(minutes=15, seconds=5))

    async def asleep_again() -> bool:
        return (await _events(dispatch))["TIMER_STARTED"] >= 2

    await eventually(asleep_again)
    assert await fleet.story(delivery) == ["offered"]


async def test_an_offer_that_somebody_holds_locked_is_not_asked_for_without_end(
    time_skipping: WorkflowEnvironment, fleet: Fleet, dispatch: WorkflowHandle[Any, None]
) -> None:
    [delivery] = await fleet.deliveries(1)
    await dispatch.signal(DispatchWorkflow.wake)
    await eventually(lambda: _waits_for_a_deadline(dispatch))
    await fleet.deadline_passes()

    async def pauses() -> list[float]:
        """Since the offer's own deadline, once they are long."""
        history = await dispatch.fetch_history()
        started = [each for each in history.events if each.event_type == EventType.EVENT_TYPE_TIMER_STARTED]
        seconds = [
            each.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta().total_seconds() for each in started
        ][1:]
        return seconds if seconds and seconds[-1] > 0.8 else []

    async def while_locked(connection: AsyncConnection) -> list[float]:
        await connection.execute(text("SELECT FROM deliveries WHERE delivery_id = :id FOR UPDATE"), {"id": delivery})
        await dispatch.signal(DispatchWorkflow.wake)
        return await eventually(pauses)

    seconds = await fleet.database.transact(while_locked)
    # Short at first, for whoever holds it may be about to let go; a lasting lock is not asked about without end.
    assert len(seconds) >= 2
    assert seconds == sorted(seconds)
    await time_skipping.sleep(timedelta(seconds=10))

    async def over() -> bool:
        return "expired" in await fleet.story(delivery)

    await eventually(over)


@pytest.mark.parametrize("memo", [{}], ids=["begun_by_the_old_rule"])
async def test_a_deadline_outlives_the_run_that_learned_of_it(
    time_skipping: WorkflowEnvironment, fleet: Fleet, dispatch: WorkflowHandle[Any, None]
) -> None:
    [delivery] = await fleet.deliveries(1)
    await dispatch.signal(DispatchWorkflow.wake)
    await eventually(lambda: _waits_for_a_deadline(dispatch))
    first = await dispatch.describe()
    seen = first
    while seen.run_id == first.run_id:
        before = seen.history_length
        await dispatch.signal(DispatchWorkflow.wake)

        async def round_is_over(before: int = before) -> WorkflowExecutionDescription | None:
            now = await dispatch.describe()
            return now if now.run_id != first.run_id or now.history_length >= before + _EVENTS_A_ROUND else None

        after = await eventually(round_is_over)
        assert after is not None
        seen = after
    await eventually(lambda: _waits_for_a_deadline(dispatch))
    assert await seen.memo_value(DISPATCH_RULE_MEMO) == DISPATCH_RULE
    assert await fleet.story(delivery) == ["offered"]
    await fleet.deadline_passes()
    await time_skipping.sleep(timedelta(minutes=16))

    async def over() -> bool:
        return "expired" in await fleet.story(delivery)

    await eventually(over)
