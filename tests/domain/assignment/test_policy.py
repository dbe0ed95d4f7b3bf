"""The dispatch policy: who takes what, what goes together, what waits, and why."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.assignment.explain import explain
from domain.assignment.policy import decide
from domain.assignment.travel import METRES_PER_SECOND, GreatCircle
from domain.assignment.view import (
    Fetching,
    FreeCourier,
    Policy,
    RoundView,
    WaitingDelivery,
    WaitReason,
)
from domain.order import Place

SHOP = Place(52.50, 13.40)
MINUTE_NORTH = 60 * METRES_PER_SECOND / 111_195
"""Degrees of latitude that take a courier a minute."""


def north(minutes: float, of: Place = SHOP) -> Place:
    return Place(of.lat + minutes * MINUTE_NORTH, of.lng)


def delivery(name: str = "d", minutes: float = 10, **more: object) -> WaitingDelivery:
    fields: dict[str, object] = {"seconds_to_promise": 3600.0, "pickup": SHOP, **more}
    return WaitingDelivery(delivery_id=name, dropoff=north(minutes), **fields)  # type: ignore[arg-type]


def courier(name: str = "c", minutes: float = -5, slots: int = 1, **more: object) -> FreeCourier:
    return FreeCourier(name, north(minutes), slots, **more)  # type: ignore[arg-type]


def view(deliveries: list[WaitingDelivery], couriers: list[FreeCourier], **policy: object) -> RoundView:
    return RoundView(tuple(deliveries), tuple(couriers), replace(Policy(), **policy))  # type: ignore[arg-type]


def given_to(asked: RoundView) -> dict[str, str]:
    return {pair.delivery_id: pair.courier_id for pair in decide(asked).pairs}


def test_a_delivery_goes_at_once_to_the_idle_courier_who_is_nearest() -> None:
    assert given_to(view([delivery()], [courier("far", -9), courier("near", -2)])) == {"d": "near"}


def test_without_a_pickup_the_way_counts_to_the_door() -> None:
    assert given_to(view([delivery(pickup=None)], [courier("shop", 0), courier("door", 9)])) == {"d": "door"}


def test_all_deliveries_are_served_rather_than_the_first_one_best() -> None:
    deliveries = [delivery("north", pickup=north(4)), delivery("south", pickup=north(-4))]
    couriers = [courier("middle", 0.5), courier("very north", 9)]
    assert given_to(view(deliveries, couriers)) == {"north": "very north", "south": "middle"}


def test_work_is_spread_before_it_is_stacked_up_to_the_slots() -> None:
    deliveries = [delivery(f"d{n}", pickup=None) for n in range(5)]
    decision = decide(view(deliveries, [courier("a", slots=3), courier("b", -6, slots=1)]))
    assert Counter(pair.courier_id for pair in decision.pairs) == {"a": 3, "b": 1}
    assert [each.reason for each in decision.postponed] == [WaitReason.OUTBID]
    assert len({*given_to(view(deliveries[:2], [courier("a", slots=3), courier("b", -6)])).values()}) == 2


def test_in_a_rush_who_cannot_wait_for_the_next_turn_goes_first() -> None:
    patient = delivery("patient", 1, pickup=north(-4), seconds_to_cap=5400.0)
    last_chance = delivery("last chance", -15, pickup=north(-12), seconds_to_cap=1500.0)
    asked = view([patient, last_chance], [courier()], stacked=False)
    assert given_to(asked) == {"last chance": "c"}
    waiting = decide(asked).postponed[0]
    assert (waiting.reason, waiting.courier_id) == (WaitReason.CHEAPER_TO_WAIT, "c")
    assert explain(asked).gap_seconds == 0


def test_deliveries_of_one_pickup_go_together_when_couriers_are_short() -> None:
    deliveries = [delivery("far", 10), delivery("near", 5)]
    pairs = decide(view(deliveries, [courier(slots=2)], stacked=False)).pairs
    assert [pair.delivery_id for pair in pairs] == ["near", "far"]
    assert len({pair.cost_seconds for pair in pairs}) == 1
    apart = [delivery("far", 10), delivery("elsewhere", 5, pickup=north(1))]
    assert len(decide(view(apart, [courier(slots=2)], stacked=False)).pairs) == 1


def test_what_is_not_ready_waits_until_its_courier_must_leave() -> None:
    early = decide(view([delivery(ready_in_seconds=1200.0)], [courier(minutes=-5)]))
    assert early.pairs == ()
    assert early.postponed[0].reason is WaitReason.CHEAPER_TO_WAIT
    assert early.postponed[0].courier_id == "c"
    assert early.postponed[0].look_again_seconds == pytest.approx(900, abs=5)
    assert given_to(view([delivery(ready_in_seconds=330.0)], [courier(minutes=-5)])) == {"d": "c"}


def test_a_courier_soon_free_nearby_is_worth_waiting_for() -> None:
    decision = decide(view([delivery()], [courier("soon", 0, free_in_seconds=60.0), courier("far", -15)]))
    assert (decision.pairs, decision.postponed[0].courier_id) == ((), "soon")
    assert given_to(view([delivery()], [courier("late", 0, free_in_seconds=1800.0), courier("far", -15)])) == {
        "d": "far"
    }


def test_more_of_the_same_pickup_joins_who_is_fetching_there_in_the_last_moment() -> None:
    fetching = Fetching(SHOP, 30.0, (delivery("first", 10),))
    busy = courier("busy", 10, 2, free_in_seconds=900.0, fetching=fetching)
    assert given_to(view([delivery("second", 9)], [busy, courier("idle", -20)])) == {"second": "busy"}
    later = replace(busy, fetching=replace(fetching, pickup_in_seconds=600.0))
    assert decide(view([delivery("second", 9)], [later])).postponed[0].look_again_seconds == 600.0
    assert given_to(view([delivery("other", 9, pickup=north(3))], [busy, courier("idle", -2)])) == {"other": "idle"}


def test_what_is_about_to_be_late_goes_first() -> None:
    deliveries = [delivery("easy", 10), delivery("late", 10, seconds_to_promise=600.0)]
    assert given_to(view(deliveries, [courier()], most_detour_seconds=-1.0)) == {"late": "c"}


NOBODY = {
    "nobody is online": (view([delivery()], []), WaitReason.NO_COURIER),
    "everybody is full": (view([delivery()], [courier(slots=0)]), WaitReason.AT_CAPACITY),
    "all declined": (view([delivery(not_by=("c",))], [courier()]), WaitReason.ALL_DECLINED),
    "the shift ends first": (view([delivery()], [courier(until_seconds=60.0)]), WaitReason.OUT_OF_REACH),
    "it would come too late": (view([delivery(seconds_to_cap=300.0)], [courier()]), WaitReason.OUT_OF_REACH),
    "it costs more than leaving it": (view([delivery()], [courier(minutes=-4000)]), WaitReason.OUT_OF_REACH),
    "others are nearer": (
        view([delivery("near", 1), delivery(minutes=90, pickup=north(40))], [courier()]),
        WaitReason.OUTBID,
    ),
    "the courier is worth waiting for": (
        view([delivery()], [courier(free_in_seconds=60.0)]),
        WaitReason.CHEAPER_TO_WAIT,
    ),
}


@pytest.mark.parametrize("case", NOBODY)
def test_a_round_says_why_nobody_was_given_a_delivery(case: str) -> None:
    asked, reason = NOBODY[case]
    assert {each.delivery_id: each.reason for each in decide(asked).postponed}["d"] is reason
    explained = {each.delivery_id: each for each in explain(asked).deliveries}["d"]
    assert explained.reason is reason
    assert explained.text


def test_a_stored_round_is_explained_with_its_proof_and_runners_up() -> None:
    asked = view([delivery("a"), delivery("b", 3)], [courier("x", -1), courier("y", -2), courier("z", -8)])
    stored = RoundView.from_json(json.loads(json.dumps(asdict(asked))))
    assert stored == asked
    explanation = explain(stored)
    assert explanation.gap_seconds == 0
    assert explanation.total_cost_seconds == pytest.approx(sum(pair.cost_seconds for pair in decide(asked).pairs))
    for each in explanation.deliveries:
        assert each.courier_id in {"x", "y"}
        assert each.runners_up[-1].courier_id == "z"
        assert all(runner_up.reduced_cost_seconds >= 0 for runner_up in each.runners_up)


def test_a_round_too_big_for_every_pair_offers_the_nearest_couriers() -> None:
    deliveries = [delivery(f"d{n}", 3 * n, pickup=north(2 * n)) for n in range(6)]
    couriers = [courier(f"c{n}", 2 * n + 0.1, slots=1 + n % 2) for n in range(6)]
    asked = view([*deliveries, delivery("no", not_by=("c0", "c1"))], couriers, top_candidates=2, dense_cells=0)
    assert given_to(asked) == {f"d{n}": f"c{n}" for n in range(6)}
    assert explain(asked).gap_seconds == 0


def test_the_way_is_the_great_circle() -> None:
    travel = GreatCircle()
    berlin = travel.points([Place(52.5200, 13.4050)])
    paris = travel.points([Place(48.8566, 2.3522)])
    assert travel.seconds(berlin, paris) * METRES_PER_SECOND == pytest.approx(877_500, rel=0.001)
    assert travel.seconds(berlin, berlin) == 0


PLACES = st.builds(north, st.floats(-20, 20))
SECONDS = st.floats(-600, 3600)


@st.composite
def rounds(draw: st.DrawFn) -> RoundView:
    names = ["a", "b", "c", "d"]
    deliveries = [
        WaitingDelivery(
            delivery_id=f"d{n}",
            dropoff=draw(PLACES),
            seconds_to_promise=draw(SECONDS),
            pickup=draw(st.sampled_from([None, SHOP, north(5)])),
            not_by=tuple(draw(st.sets(st.sampled_from(names), max_size=2))),
            ready_in_seconds=draw(st.sampled_from([-60.0, 0.0, 200.0, 900.0])),
            seconds_to_cap=draw(st.sampled_from([None, 1500.0])),
        )
        for n in range(draw(st.integers(0, 6)))
    ]
    fetching = Fetching(SHOP, 30.0, (delivery("under way"),))
    couriers = [
        FreeCourier(
            name,
            draw(PLACES),
            draw(st.integers(0, 3)),
            draw(st.sampled_from([0.0, 0.0, 300.0])),
            draw(st.sampled_from([None, 900.0])),
            draw(st.sampled_from([None, None, fetching])),
        )
        for name in names[: draw(st.integers(0, 4))]
    ]
    stacked = draw(st.booleans())
    if not stacked:  # there who is fetching is not free yet
        couriers = [replace(each, free_in_seconds=600.0) if each.fetching else each for each in couriers]
    return view(deliveries, couriers, stacked=stacked, dense_cells=draw(st.sampled_from([0, 1000])))


@given(rounds())
@settings(max_examples=150, deadline=None)
def test_every_delivery_is_given_once_or_waits_within_slots_and_never_to_who_declined(asked: RoundView) -> None:
    decision = decide(asked)
    assert decision == decide(asked)
    answered = [each.delivery_id for each in decision.pairs] + [each.delivery_id for each in decision.postponed]
    assert sorted(answered) == [each.delivery_id for each in asked.deliveries]
    deliveries = {each.delivery_id: each for each in asked.deliveries}
    carried = Counter(pair.courier_id for pair in decision.pairs)
    assert all(carried[each.courier_id] <= each.slots for each in asked.couriers)
    assert not any(pair.courier_id in deliveries[pair.delivery_id].not_by for pair in decision.pairs)
    assert explain(asked).gap_seconds == 0
