"""Ids: the same for the same, different for the different, sorted by time, one installation apart from the other."""

from __future__ import annotations

import time
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.ids import Names, delivery_id, new_id, order_id
from tests.waiting import wait_until

callers = st.tuples(st.text(max_size=12), st.text(max_size=12))


def test_an_order_id_never_changes_between_releases() -> None:
    assert order_id("client", "k-1") == "5c47a234-7802-53ab-aebf-e0f650d07d08"


def test_the_same_caller_with_the_same_key_means_the_same_order() -> None:
    assert order_id("client", "k-1") == order_id("client", "k-1")


@pytest.mark.parametrize(
    "other",
    [
        ("client", "k-2"),
        ("admin", "k-1"),
        ("client:k", "-1"),
        ("clien", "t:k-1"),
        ("", "client:k-1"),
        ("6:client", "k-1"),
    ],
)
def test_another_caller_or_another_key_means_another_order(other: tuple[str, str]) -> None:
    assert order_id(*other) != order_id("client", "k-1")


@settings(derandomize=True, max_examples=200, database=None)
@given(callers, callers)
def test_two_orders_share_an_id_only_when_caller_and_key_are_the_same(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assert (order_id(*one) == order_id(*other)) is (one == other)


@settings(derandomize=True, max_examples=100, database=None)
@given(st.text(min_size=2, max_size=12), st.data())
def test_a_separator_inside_principal_or_key_cannot_forge_another_callers_order(text: str, data: st.DataObject) -> None:
    cut, other_cut = (data.draw(st.integers(0, len(text))) for _ in range(2))
    joined = text.replace(text[0], ":")
    ids = {order_id(joined[:place], joined[place:]) for place in (cut, other_cut)}
    assert len(ids) == len({cut, other_cut})


def test_an_orders_delivery_has_an_id_of_its_own() -> None:
    order = order_id("client", "k-1")
    assert delivery_id(order) == delivery_id(order)
    assert delivery_id(order) not in (order, delivery_id(order_id("client", "k-2")))


def test_a_new_id_is_a_uuid_of_version_7() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(new_id())
    after = time.time_ns() // 1_000_000
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert before <= made.int >> 80 <= after


def test_new_ids_differ() -> None:
    assert len({new_id() for _ in range(5000)}) == 5000


def test_a_later_id_sorts_after_an_earlier_one() -> None:
    earlier = new_id()
    made = time.time_ns() // 1_000_000
    wait_until(lambda: time.time_ns() // 1_000_000 > made)
    assert new_id() > earlier


def temporal_names(names: Names) -> list[str]:
    return [
        names.main_queue,
        names.relay_queue,
        names.order("o-1"),
        names.relay(0),
        names.relay(1),
        names.failure("1-1"),
        names.reconcile("r-1"),
        names.sweep("s-1"),
        names.snapshot("s-1"),
        names.outbox_replay("r-1"),
        names.sweep_schedule,
    ]


def test_everything_in_temporal_carries_the_installations_id() -> None:
    assert all(name.startswith("shop-") for name in temporal_names(Names("shop")))


def test_no_two_things_in_temporal_share_a_name() -> None:
    names = temporal_names(Names("shop")) + temporal_names(Names("store"))
    assert len(set(names)) == len(names)
