"""Offers: one courier is asked, once; what they do not take waits again, and in the end for a person."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import IntegrityError

from db.assignment.requeue import NotWaiting, put_back
from db.cross_check import waiting_zones
from domain.assignment.states import AssignmentSource, CourierAction
from tests.db.fleets import Fleet

AUTO = AssignmentSource.AUTO


async def test_an_offer_counts_in_its_couriers_load_and_ends_accepted(fleet: Fleet) -> None:
    [delivery] = await fleet.deliveries(1)
    [ada] = await fleet.couriers(1)
    assert await fleet.offer(delivery, ada) == []
    assert (await fleet.status(delivery), await fleet.load(ada)) == (("OFFERED", ada), 1)
    for _ in range(2):
        assert await fleet.act(delivery, ada, CourierAction.ACCEPT)
        assert (await fleet.status(delivery), await fleet.load(ada)) == (("ASSIGNED", ada), 1)
    assert await fleet.story(delivery) == ["offered", "accepted"]
    assert await fleet.apart() == {"courier replay": 1}
    events = await fleet.sql("SELECT event_type, data FROM outbox_events ORDER BY position")
    assert [event_type for event_type, _ in events] == ["waybill.delivery.offered", "waybill.delivery.assigned"]
    assert events[0][1]["courierId"] == ada
    assert events[0][1]["offerExpiresAt"].endswith("Z")
    await fleet.holds_together()


@pytest.mark.parametrize("how", ["declined", "expired", "courier_offline"])
async def test_who_was_asked_in_vain_is_not_asked_again_for_that_delivery(fleet: Fleet, how: str) -> None:
    delivery, other = await fleet.deliveries(2)
    ada, bob = await fleet.couriers(2)
    await fleet.offer(delivery, ada)
    if how == "declined":
        await fleet.act(delivery, ada, CourierAction.DECLINE)
    elif how == "expired":
        await fleet.expire()
        assert await fleet.status(delivery) == ("OFFERED", ada)  # not yet
        await fleet.deadline_passes()
        await fleet.expire()
    else:
        await fleet.online(ada, False)
        await fleet.online(ada, True)
    assert (await fleet.status(delivery), await fleet.load(ada)) == (("PENDING", None), 0)
    assert await fleet.story(delivery) == ["offered", how]
    assert await fleet.candidates(delivery) == [bob]
    assert await fleet.candidates(other) == [ada, bob]
    # Nor by a round that looked before that.
    assert [each.kind for each in await fleet.offer(delivery, ada)] == ["stale_round"]
    with pytest.raises(IntegrityError):
        await fleet.sql(
            "INSERT INTO assignments (delivery_id, courier_id, source, offered) VALUES (:d, :c, 'auto', true)",
            d=delivery,
            c=ada,
        )
    # By hand, anybody.
    assert await fleet.give(delivery, ada) == []
    await fleet.holds_together()


async def test_after_as_many_offers_as_the_zone_allows_a_delivery_needs_a_person(fleet: Fleet) -> None:
    [delivery] = await fleet.deliveries(1)
    ada, bob, eve, dan = await fleet.couriers(4)
    await fleet.knobs(max_offers=3)
    await fleet.offer(delivery, ada)
    await fleet.act(delivery, ada, CourierAction.DECLINE)
    await fleet.offer(delivery, bob)
    await fleet.deadline_passes()
    await fleet.expire()
    assert await fleet.status(delivery) == ("PENDING", None)
    await fleet.knobs(max_offers=2)  # live: the next refusal is one too many
    await fleet.offer(delivery, eve)
    await fleet.act(delivery, eve, CourierAction.DECLINE)
    assert await fleet.status(delivery) == ("NEEDS_ATTENTION", None)
    [(timeline, attention)] = await fleet.sql("SELECT timeline, attention FROM deliveries")
    assert [each["what"] for each in timeline][-2:] == ["declined", "needs_attention"]
    assert timeline[-1]["reason"] == "max_offers: 3 couriers were asked in vain"
    assert attention == "max_offers"
    assert [each.kind for each in await fleet.offer(delivery, dan)] == ["stale_round"]

    for _ in range(2):
        await fleet.database.transact(lambda c: put_back(c, delivery, actor="admin", reason="called them"))
    assert await fleet.status(delivery) == ("PENDING", None)
    assert await fleet.sql("SELECT count(*) FROM admin_actions WHERE action = 'delivery.requeue'") == [(1,)]
    assert await fleet.candidates(delivery) == [dan]
    assert await fleet.offer(delivery, dan) == []
    with pytest.raises(NotWaiting):
        await fleet.database.transact(lambda c: put_back(c, delivery, actor="admin", reason="again"))
    await fleet.holds_together()


async def test_an_accept_after_the_deadline_loses_and_is_counted_once_even_before_a_round_notices(fleet: Fleet) -> None:
    [delivery] = await fleet.deliveries(1)
    ada, bob = await fleet.couriers(2)
    await fleet.offer(delivery, ada)
    await fleet.deadline_passes()
    assert not await fleet.act(delivery, ada, CourierAction.ACCEPT)
    assert (await fleet.status(delivery), await fleet.load(ada)) == (("PENDING", None), 0)
    await fleet.offer(delivery, bob)
    for _ in range(2):
        assert not await fleet.act(delivery, ada, CourierAction.ACCEPT)
    assert await fleet.conflicts() == {"courier late_accept": 1}
    assert await fleet.apart() == {"courier duplicate": 2}
    await fleet.holds_together()


@pytest.mark.parametrize("seed", range(3))
async def test_accept_decline_and_expiry_racing_for_one_offer_have_one_winner(fleet: Fleet, seed: int) -> None:
    ids = await fleet.deliveries(40)
    couriers = await fleet.couriers(40)
    await fleet.knobs(max_offers=100)
    offers = list(zip(ids, couriers, strict=True))
    for delivery, courier in offers:
        await fleet.offer(delivery, courier)
    # Some offers are over, some end in the middle of the race.
    await fleet.sql(
        "UPDATE deliveries SET offer_expires_at = clock_timestamp() + make_interval(secs => 0.15 * random() - 0.05)"
    )

    async def expire() -> None:
        for _ in range(20):
            await fleet.expire()

    accepted, _ = await asyncio.gather(
        asyncio.gather(*(fleet.act(*offer, CourierAction.ACCEPT) for offer in offers)), expire()
    )
    await fleet.deadline_passes()
    await fleet.expire()
    for (delivery, courier), won in zip(offers, accepted, strict=True):
        assert await fleet.status(delivery) == (("ASSIGNED", courier) if won else ("PENDING", None))
        assert await fleet.load(courier) == int(won)
        assert await fleet.story(delivery) == ["offered", "accepted" if won else "expired"]
    assert await fleet.conflicts() == {"courier late_accept": accepted.count(False)}
    await fleet.holds_together()


async def test_a_courier_who_goes_offline_gives_back_what_they_have_not_picked_up(fleet: Fleet) -> None:
    carried, pinned, assigned, offered = await fleet.deliveries(4)
    ada, bob = await fleet.couriers(2, capacity=4)
    for delivery in (carried, assigned):
        await fleet.give(delivery, ada, AUTO)
    await fleet.give(pinned, ada)
    await fleet.offer(offered, ada)
    await fleet.act(carried, ada, CourierAction.PICKUP)
    for _ in range(2):
        await fleet.online(ada, False, capacity=1)
    for delivery in (pinned, assigned, offered):
        assert await fleet.status(delivery) == ("PENDING", None)
        assert (await fleet.story(delivery))[-1] == "courier_offline"
    assert (await fleet.status(carried), await fleet.load(ada)) == (("PICKED_UP", ada), 1)
    assert await fleet.sql("SELECT delivery_id, attention FROM deliveries WHERE attention IS NOT NULL") == [
        (carried, "courier_offline")
    ]
    assert (await fleet.story(carried))[-2:] == ["picked_up", "needs_attention"]
    woken = await fleet.sql("SELECT count(*) FROM outbox_events WHERE event_type = 'waybill.zone.woken'")
    assert woken == [(1,)]
    await fleet.holds_together()

    await fleet.online(ada, True, capacity=4)
    assert (await fleet.story(carried))[-1] == "courier_online"
    # What was theirs without being asked may be theirs again; of what they were asked for they left once.
    assert await fleet.candidates(assigned) == [ada, bob]
    assert await fleet.candidates(offered) == [bob]
    await fleet.online(ada, False)
    await fleet.act(carried, ada, CourierAction.COMPLETE)
    assert await fleet.status(carried) == ("DELIVERED", ada)
    assert await fleet.sql("SELECT 1 FROM deliveries WHERE attention IS NOT NULL") == []


async def test_the_cross_check_finds_offers_whose_dispatch_is_gone(fleet: Fleet) -> None:
    async def zones() -> list[str]:
        async with fleet.database.read() as connection:
            return await waiting_zones(connection)

    [delivery] = await fleet.deliveries(1)
    [ada] = await fleet.couriers(1)
    await fleet.offer(delivery, ada)
    assert await zones() == []
    await fleet.sql("UPDATE deliveries SET offer_expires_at = now() - interval '1 minute'")
    assert await zones() == ["north"]
