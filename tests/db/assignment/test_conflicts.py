"""What an attempt to assign can lose to: each kind told from the others, each answered loser counted once."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.assignment import commit
from domain.assignment.states import AssignmentSource, CourierAction
from tests.db.fleets import Fleet

AUTO, MANUAL, ROUTE = AssignmentSource.AUTO, AssignmentSource.MANUAL, AssignmentSource.ROUTE


@pytest.mark.parametrize(
    ("meanwhile", "kind"),
    [
        ("given by hand", "delivery_taken"),
        ("given by another round", "stale_round"),
        ("needs attention", "stale_round"),
        ("asked and declined", "stale_round"),
        ("moved to another zone", "stale_round"),
        ("offline", "courier_unavailable"),
        ("filled up", "capacity"),
        ("cancelled", None),
        ("given to the same courier", None),
    ],
)
async def test_a_rounds_winner_knows_what_it_lost_to(fleet: Fleet, meanwhile: str, kind: str | None) -> None:
    delivery, other = await fleet.deliveries(2)
    ada, bob = await fleet.couriers(2, capacity=1)
    if meanwhile == "given by hand":
        await fleet.give(delivery, bob)
    elif meanwhile == "given by another round":
        await fleet.give(delivery, bob, AUTO)
    elif meanwhile == "needs attention":
        await fleet.knobs(max_offers=1)
        await fleet.offer(delivery, bob)
        await fleet.act(delivery, bob, CourierAction.DECLINE)
    elif meanwhile == "asked and declined":
        await fleet.offer(delivery, ada)
        await fleet.act(delivery, ada, CourierAction.DECLINE)
    elif meanwhile == "moved to another zone":
        await fleet.online(ada, True, zone="south")
    elif meanwhile == "offline":
        await fleet.online(ada, False)
    elif meanwhile == "filled up":
        await fleet.give(other, ada)
    elif meanwhile == "cancelled":
        await fleet.sql("UPDATE deliveries SET status = 'CANCELLED' WHERE delivery_id = :d", d=delivery)
    else:
        await fleet.give(delivery, ada, AUTO)
    lost = await fleet.give(delivery, ada, AUTO)
    assert await fleet.conflicts() == ({f"auto {kind}": 1} if kind else {})
    assert await fleet.apart() == (
        {} if kind else {"cancelled": {"auto superseded": 1}}.get(meanwhile, {"auto replay": 1})
    )
    if kind:
        assert [(each.kind, each.holder) for each in lost] == [(kind, bob if "given by" in meanwhile else None)]
    await fleet.holds_together()


async def test_who_waits_too_long_for_a_lock_has_lost_and_is_counted_by_source(fleet: Fleet) -> None:
    deliveries = await fleet.deliveries(4)
    holders, losers = await fleet.couriers(4), await fleet.couriers(4, prefix="loser")
    for delivery, holder in zip(deliveries, holders, strict=True):
        await fleet.give(delivery, holder, AUTO)
    sources = (MANUAL, ROUTE, AUTO)  # and a courier; each with a delivery of their own, or they would wait in line

    async def while_locked(connection: AsyncConnection) -> tuple[list[list[commit.Conflict]], bool]:
        await connection.execute(text("SELECT 1 FROM deliveries FOR UPDATE"))
        attempts = asyncio.gather(*map(fleet.give, deliveries[:3], losers[:3], sources))
        accepted = await fleet.act(deliveries[3], losers[3], CourierAction.ACCEPT)
        return await attempts, accepted

    attempts, accepted = await fleet.database.transact(while_locked)
    told = [(each.kind, each.holder) for [each] in attempts]
    assert told == [("lock_timeout", holder) for holder in holders[:3]]
    assert not accepted
    assert await fleet.conflicts() == {f"{each} lock_timeout": 1 for each in AssignmentSource}
    assert await fleet.sql("SELECT DISTINCT zone FROM zone_conflict_counts") == [("north",)]
    await fleet.holds_together()


async def test_a_route_that_loses_changes_nothing_and_is_one_loser(fleet: Fleet) -> None:
    own, first, second, free = await fleet.deliveries(4)
    ada, bob = await fleet.couriers(2)
    await fleet.give(own, ada, AUTO)
    for delivery in (first, second):
        await fleet.give(delivery, bob)
    pairs = [(delivery, ada) for delivery in (own, first, second, free, free)]
    lost = await fleet.database.transact(lambda c: commit.assign(c, pairs, ROUTE))
    assert [(each.delivery_id, each.holder) for each in lost] == [(first, bob), (second, bob)]
    assert await fleet.status(free) == ("PENDING", None)
    assert await fleet.sql("SELECT pinned FROM deliveries WHERE delivery_id = :d", d=own) == [(False,)]
    assert await fleet.conflicts() == {"route delivery_taken": 1}
    assert await fleet.apart() == {"route duplicate": 1, "route replay": 1}
    lost = await fleet.database.transact(lambda c: commit.assign(c, pairs, ROUTE, partial=True))
    assert len(lost) == 2
    assert await fleet.status(free) == ("ASSIGNED", ada)
    assert await fleet.sql("SELECT pinned FROM deliveries WHERE delivery_id = :d", d=own) == [(True,)]
    assert await fleet.conflicts() == {"route delivery_taken": 3}


async def test_each_loser_is_counted_in_the_zone_of_the_delivery_that_it_lost(fleet: Fleet) -> None:
    [north], [south, other] = await fleet.deliveries(1), await fleet.deliveries(2, "south", prefix="s")
    ada, bob = await fleet.couriers(2)
    for delivery in (north, south):
        await fleet.give(delivery, bob)
        await fleet.give(delivery, ada)
    pairs = [(delivery, ada) for delivery in (south, north, other, other)]
    await fleet.database.transact(lambda c: commit.assign(c, pairs, ROUTE, partial=True))
    await fleet.offer(north, bob)
    await fleet.sql("UPDATE assignments SET live = false, outcome = 'taken_over' WHERE delivery_id = :d", d=south)
    await fleet.sql("UPDATE deliveries SET courier_id = :ada WHERE delivery_id = :d", ada=ada, d=south)
    assert not await fleet.act(south, bob, CourierAction.PICKUP)
    counted = await fleet.sql(
        "SELECT zone, source, kind, CAST(sum(total) AS int) FROM zone_conflict_counts GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    assert [" ".join(map(str, row)) for row in counted] == [
        "north manual delivery_taken 1",
        "north route delivery_taken 1",
        "south courier delivery_taken 1",
        "south manual delivery_taken 1",
        "south route delivery_taken 1",
    ]


async def test_a_person_takes_over_an_offer_and_its_courier_is_free_at_once(fleet: Fleet) -> None:
    delivery, waiting = await fleet.deliveries(2)
    ada, bob = await fleet.couriers(2, capacity=1)
    await fleet.offer(delivery, ada)
    lost = await fleet.give(delivery, bob)
    assert [(each.kind, each.holder) for each in lost] == [("delivery_taken", ada)]
    assert await fleet.give(delivery, bob, force=True) == []
    assert await fleet.status(delivery) == ("ASSIGNED", bob)
    assert await fleet.load(ada) == 0
    assert not await fleet.act(delivery, ada, CourierAction.ACCEPT)
    assert await fleet.conflicts() == {"manual delivery_taken": 1, "courier late_accept": 1}
    assert await fleet.sql("SELECT count(*) FROM outbox_events WHERE event_type = 'waybill.zone.woken'") == [(1,)]
    assert await fleet.candidates(waiting) == [ada]
    await fleet.holds_together()


async def test_a_person_gives_a_courier_what_they_are_only_asked_for(fleet: Fleet) -> None:
    [delivery] = await fleet.deliveries(1)
    [ada] = await fleet.couriers(1, capacity=1)
    await fleet.offer(delivery, ada)
    assert await fleet.give(delivery, ada) == []
    assert (await fleet.status(delivery), await fleet.load(ada)) == (("ASSIGNED", ada), 1)
    await fleet.deadline_passes()
    await fleet.expire()
    assert await fleet.status(delivery) == ("ASSIGNED", ada)
    await fleet.holds_together()
