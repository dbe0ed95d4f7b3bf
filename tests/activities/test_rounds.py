"""A zone's rounds: every knob has its effect from the next round on, and the worker stays responsive meanwhile."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from unittest.mock import ANY

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio.testing import ActivityEnvironment

from activities.assignment import AssignmentActivities, RoundOutcome, batch_window
from db.assignment.rounds import Hurry, get_round, list_rounds, read_hurry
from db.assignment.zones import ZoneSettings
from db.engine import Database, create_engine
from domain.assignment.states import CourierAction
from tests.db.fleets import Fleet
from tests.waiting import eventually


class Dispatch(Fleet):
    """A fleet with the activities of its zone's dispatch."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.activities = AssignmentActivities(database)

    async def round(self, *, at_once: bool = True) -> RoundOutcome:
        """What the dispatch has done when an offer's deadline woke it: no batch window."""
        outcome: RoundOutcome = await ActivityEnvironment().run(self.activities.run_round, "north", at_once)
        return outcome

    async def statuses(self) -> dict[str, int]:
        """How many deliveries have each status."""
        return dict(await self.sql("SELECT status, CAST(count(*) AS integer) FROM deliveries GROUP BY status"))


@pytest_asyncio.fixture
async def dispatch(database_url: str) -> AsyncIterator[Dispatch]:
    """A migrated database, and nobody in it but a dispatch."""
    database = Database(create_engine(database_url, name="test"))
    running = Dispatch(database)
    yield running
    running.activities.close()
    await database.close()


@pytest.mark.parametrize(
    ("window", "deadline", "promise", "waits"),
    [
        (2.0, None, None, 2.0),
        (0.0, None, None, 0.0),
        (2.0, 60.0, 3600.0, 2.0),
        (5.0, 1.5, None, 1.5),
        (5.0, -3.0, None, 0.25),  # offers that end close together are one round's work
        (0.1, -3.0, None, 0.1),
        (5.0, None, 302.0, 2.0),
        (5.0, None, 200.0, 0.0),
        (5.0, None, -10.0, 0.0),
    ],
)
def test_the_batch_window_is_cut_short_by_the_tightest_delivery(
    window: float, deadline: float | None, promise: float | None, waits: float
) -> None:
    assert batch_window(ZoneSettings(batch_window_seconds=window), Hurry(deadline, promise)) == pytest.approx(waits)


async def test_only_what_somebody_could_take_hurries_a_round(dispatch: Dispatch) -> None:
    async def hurry() -> Hurry:
        async with dispatch.database.read() as connection:
            return await read_hurry(connection, "north")

    [delivery] = await dispatch.deliveries(1, promise_seconds=100)
    assert await hurry() == Hurry(None, None)
    [ada] = await dispatch.couriers(1)
    promise = (await hurry()).seconds_to_promise
    assert promise is not None
    assert 90 < promise <= 100
    await dispatch.offer(delivery, ada, window_seconds=50)
    await dispatch.deliveries(1, promise_seconds=5, prefix="other-zone", zone="south")
    deadline = await hurry()
    assert deadline.seconds_to_deadline is not None
    assert 40 < deadline.seconds_to_deadline <= 50
    assert deadline.seconds_to_promise is None


async def test_max_batch_is_how_many_deliveries_a_round_takes_the_oldest_first(dispatch: Dispatch) -> None:
    ids = await dispatch.deliveries(5)
    await dispatch.couriers(5)
    await dispatch.knobs(max_batch=2)
    outcome = await dispatch.round()
    assert (outcome.assigned, outcome.again, outcome.at_once) == (2, True, True)
    assert [await dispatch.status(each) for each in ids[2:]] == [("PENDING", None)] * 3
    await dispatch.knobs(max_batch=1000)
    assert (await dispatch.round()).assigned == 3


async def test_an_accept_window_makes_offers_and_its_end_asks_somebody_else(dispatch: Dispatch) -> None:
    [delivery] = await dispatch.deliveries(1)
    ada, bob = await dispatch.couriers(2)
    await dispatch.knobs(accept_window_seconds=30)
    outcome = await dispatch.round()
    assert outcome.deadline_seconds is not None
    assert 20 < outcome.deadline_seconds <= 30
    status, first = await dispatch.status(delivery)
    assert status == "OFFERED"
    await dispatch.round()
    assert await dispatch.status(delivery) == ("OFFERED", first)  # left alone until then
    await dispatch.deadline_passes()
    await dispatch.round()
    status, second = await dispatch.status(delivery)
    assert (status, {first, second}) == ("OFFERED", {ada, bob})

    await dispatch.deadline_passes()
    outcome = await dispatch.round()
    assert (outcome.assigned, outcome.deadline_seconds) == (0, None)
    # Everybody was asked: it waits for a courier who was not.
    assert await dispatch.status(delivery) == ("PENDING", None)
    await dispatch.knobs(accept_window_seconds=0)
    [eve] = await dispatch.couriers(1, prefix="eve")
    await dispatch.round()
    assert await dispatch.status(delivery) == ("ASSIGNED", eve)
    await dispatch.holds_together()


async def test_max_offers_is_how_many_couriers_are_asked(dispatch: Dispatch) -> None:
    [delivery] = await dispatch.deliveries(1)
    await dispatch.couriers(5)
    await dispatch.knobs(accept_window_seconds=30, max_offers=2)
    for _ in range(4):
        await dispatch.round()
        await dispatch.deadline_passes()
    assert await dispatch.status(delivery) == ("NEEDS_ATTENTION", None)
    assert await dispatch.story(delivery) == ["offered", "expired", "offered", "expired", "needs_attention"]


async def test_in_manual_mode_rounds_only_end_offers(dispatch: Dispatch) -> None:
    offered, _ = await dispatch.deliveries(2)
    ada, _ = await dispatch.couriers(2)
    await dispatch.offer(offered, ada)
    await dispatch.knobs(mode="manual")
    await dispatch.deadline_passes()
    assert (await dispatch.round()).assigned == 0
    assert await dispatch.statuses() == {"PENDING": 2}
    await dispatch.knobs(mode="auto")
    assert (await dispatch.round()).assigned == 2


async def test_parallel_rounds_share_the_deliveries_out_and_the_couriers_among_them(dispatch: Dispatch) -> None:
    ids = await dispatch.deliveries(60)
    await dispatch.couriers(20, capacity=3)
    await dispatch.knobs(parallel_rounds=4)
    first = await dispatch.round()
    assert first.conflicts > 0  # each of the four wants the best couriers
    while (await dispatch.round()).again:
        pass
    assert await dispatch.statuses() == {"ASSIGNED": 60}
    async with dispatch.database.read() as connection:
        summaries = await list_rounds(connection, "north", None, 100)
        found = [await get_round(connection, each.round_id) for each in reversed(summaries)]
    stored = [each for each in found if each is not None]
    seen = [{each["delivery_id"] for each in one.inputs["deliveries"]} for one in stored]
    assert sum(map(len, seen[:4])) == len(set[str]().union(*seen[:4])) == len(ids)
    assert {len(one.inputs["couriers"]) for one in stored[:4]} == {20}
    assert sum(one.conflicts for one in stored[:4]) == first.conflicts == sum(len(one.losers) for one in stored[:4])
    assert sum(one.assigned for one in stored) == 60
    assert set(await dispatch.conflicts()) <= {"auto capacity"}
    await dispatch.holds_together()

    await dispatch.knobs(parallel_rounds=1)  # from the next round on
    await dispatch.deliveries(3, prefix="more")
    await dispatch.couriers(3, prefix="more")
    assert await dispatch.round() == RoundOutcome(3, 0, again=False)
    async with dispatch.database.read() as connection:
        assert len(await list_rounds(connection, "north", None, 100)) == len(stored) + 1


async def test_who_was_asked_in_vain_and_loses_the_next_courier_too_does_not_wait_for_a_batch(
    dispatch: Dispatch,
) -> None:
    await dispatch.deliveries(60)
    await dispatch.couriers(20, capacity=3)
    await dispatch.knobs(parallel_rounds=4, batch_window_seconds=0, accept_window_seconds=600)
    first = await dispatch.round(at_once=False)
    assert first.conflicts > 0
    assert (first.again, first.at_once) == (True, False)  # against conflicts it helps to wait a little
    while (await dispatch.round()).again:
        pass
    await dispatch.deadline_passes()
    second = await dispatch.round(at_once=False)
    assert second.conflicts > 0
    assert (second.again, second.at_once) == (True, True)
    await dispatch.holds_together()


async def test_a_courier_whom_somebody_holds_locked_costs_nobody_else_the_offer(dispatch: Dispatch) -> None:
    ids = await dispatch.deliveries(3)
    locked, *_ = await dispatch.couriers(3, capacity=1)
    await dispatch.knobs(accept_window_seconds=600, max_offers=10)

    async def while_locked(connection: AsyncConnection) -> RoundOutcome:
        await connection.execute(text("SELECT 1 FROM couriers WHERE courier_id = :id FOR UPDATE"), {"id": locked})
        return await dispatch.round()

    outcome = await dispatch.database.transact(while_locked)
    assert (outcome.assigned, outcome.conflicts) == (2, 1)
    assert await dispatch.conflicts() == {"auto lock_timeout": 1}
    assert await dispatch.round() == RoundOutcome(1, 0, again=False, deadline_seconds=ANY)

    # Nor do their offers' ends wait for the courier's.
    await dispatch.deadline_passes()
    await dispatch.knobs(mode="manual")
    outcome = await dispatch.database.transact(while_locked)
    assert await dispatch.statuses() == {"PENDING": 2, "OFFERED": 1}
    assert outcome.deadline_seconds is not None
    assert outcome.deadline_seconds < 0  # asked for again
    assert not outcome.held
    assert (await dispatch.database.transact(while_locked)).held  # at the second time in vain, so not at once
    assert not (await dispatch.round()).held
    assert await dispatch.statuses() == {"PENDING": len(ids)}
    await dispatch.holds_together()


async def test_offers_that_end_close_together_end_in_one_round(dispatch: Dispatch) -> None:
    offers = list(zip(await dispatch.deliveries(4), await dispatch.couriers(4), strict=True))
    for offer, seconds in zip(offers, (50, 50.2, 50.4, 60), strict=True):
        await dispatch.offer(*offer)
        await dispatch.sql(
            "UPDATE deliveries SET offer_expires_at = (SELECT created_at FROM deliveries WHERE delivery_id = 'd-00000')"
            " + make_interval(secs => :seconds) WHERE delivery_id = :id",
            id=offer[0],
            seconds=seconds,
        )
    async with dispatch.database.read() as connection:
        each, together = [(await read_hurry(connection, "north", many)).seconds_to_deadline for many in (0.0, 0.25)]
    assert each is not None
    assert together is not None
    assert 0.15 < together - each <= 0.2


async def test_a_large_round_is_solved_in_a_process_of_its_own_that_ends_with_the_worker(dispatch: Dispatch) -> None:
    await dispatch.deliveries(300)
    await dispatch.couriers(300, capacity=1)
    await dispatch.knobs(max_batch=1000)
    turns = 0
    round_ = asyncio.create_task(dispatch.round())
    while not (await asyncio.wait([round_], timeout=0.001))[0]:
        turns += 1  # the worker's loop goes on meanwhile
    assert round_.result().assigned == 300
    assert turns > 10
    assert multiprocessing.active_children() != []
    dispatch.activities.close()

    async def gone() -> bool:
        return multiprocessing.active_children() == []

    await eventually(gone)


async def test_a_courier_who_declines_is_passed_by_in_the_next_round(dispatch: Dispatch) -> None:
    [delivery] = await dispatch.deliveries(1)
    await dispatch.couriers(2)
    await dispatch.round()
    _, first = await dispatch.status(delivery)
    assert first is not None
    await dispatch.act(delivery, first, CourierAction.DECLINE)
    await dispatch.round()
    status, second = await dispatch.status(delivery)
    assert status == "ASSIGNED"
    assert second != first
