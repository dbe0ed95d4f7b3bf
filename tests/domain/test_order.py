"""What may be done with an order at which stage, and what its lines add up to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.order import Line, OrderCommand, OrderStatus, Refusal, possible, quantities, refusal

# command, stage → what the contract answers: "done now", "done already", or the problem's slug.
ANSWERS = {
    ("confirm", "RESERVED"): "done now",
    ("confirm", "CONFIRMED"): "done already",
    ("confirm", "DELIVERED"): "done already",
    ("confirm", "REJECTED"): "order-rejected",
    ("confirm", "EXPIRED"): "hold-expired",
    ("confirm", "CANCELLED"): "order-cancelled",
    ("extend", "RESERVED"): "done now",
    ("extend", "CONFIRMED"): "order-confirmed",
    ("extend", "DELIVERED"): "already-picked-up",
    ("extend", "REJECTED"): "order-rejected",
    ("extend", "EXPIRED"): "hold-expired",
    ("extend", "CANCELLED"): "order-cancelled",
    ("cancel", "RESERVED"): "done now",
    ("cancel", "CONFIRMED"): "done now",
    ("cancel", "DELIVERED"): "already-picked-up",
    ("cancel", "REJECTED"): "order-rejected",
    ("cancel", "EXPIRED"): "hold-expired",
    ("cancel", "CANCELLED"): "done already",
}

lines = st.lists(st.builds(Line, st.text(max_size=3), st.integers(1, 1_000_000)), max_size=20)


def test_the_table_answers_every_command_at_every_stage() -> None:
    assert set(ANSWERS) == {(command, stage) for command in OrderCommand for stage in OrderStatus}


@pytest.mark.parametrize(("command", "stage", "answer"), [(*asked, answer) for asked, answer in ANSWERS.items()])
def test_a_command_is_carried_out_or_refused_as_the_contract_says(command: str, stage: str, answer: str) -> None:
    asked = OrderCommand(command), OrderStatus(stage)
    assert possible(*asked) is (answer == "done now")
    assert refusal(*asked) == (None if answer.startswith("done") else Refusal(answer))


def test_an_order_needs_looking_after_until_it_can_no_longer_change() -> None:
    assert {stage for stage in OrderStatus if stage.open} == {OrderStatus.RESERVED, OrderStatus.CONFIRMED}


def test_two_lines_of_one_sku_are_one_demand() -> None:
    assert quantities([Line("tea", 2), Line("cup", 1), Line("tea", 3)]) == {"cup": 1, "tea": 5}


def test_no_lines_demand_nothing() -> None:
    assert quantities([]) == {}


@settings(derandomize=True, max_examples=50, database=None)
@given(lines)
def test_no_unit_is_lost_or_added_when_lines_are_summed(asked: list[Line]) -> None:
    total = quantities(asked)
    assert sum(total.values()) == sum(line.quantity for line in asked)
    assert set(total) == {line.sku for line in asked}


@settings(derandomize=True, max_examples=50, database=None)
@given(lines, st.randoms(use_true_random=False))
def test_the_order_in_which_lines_are_listed_changes_nothing(asked: list[Line], random: object) -> None:
    shuffled = list(asked)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert list(quantities(shuffled).items()) == list(quantities(asked).items())
    assert list(quantities(asked)) == sorted({line.sku for line in asked})
