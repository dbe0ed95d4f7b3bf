"""The matching of a round: the cheapest there is, and provably so."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.assignment.certificate import certify
from domain.assignment.matching import CostTable, solve

COST = st.one_of(st.integers(0, 50).map(float), st.just(float("inf")))


@st.composite
def tables(draw: st.DrawFn, most: int = 5) -> CostTable:
    """Small tables, dense or with a few candidates a row; ties, zeros, negative costs and forbidden pairs included."""
    rows, width = draw(st.integers(1, most)), draw(st.integers(1, most))
    leaving = np.array(draw(st.lists(st.integers(-5, 60).map(float), min_size=rows, max_size=rows)))
    if draw(st.booleans()):
        costs = [draw(st.lists(COST, min_size=width, max_size=width)) for _ in range(rows)]
        return CostTable(np.array(costs) - 10, leaving, width)
    count = draw(st.integers(1, width))
    columns = [draw(st.permutations(range(width)))[:count] for _ in range(rows)]
    costs = [draw(st.lists(COST, min_size=count, max_size=count)) for _ in range(rows)]
    return CostTable(np.array(costs), leaving, width, np.array(columns, dtype=np.int64))


def cheapest(table: CostTable) -> float:
    """Every assignment tried."""
    rows = len(table.leaving)
    choices = {tuple(choice) for choice in permutations([*range(table.width), *[-1] * rows], rows)}
    return min(
        sum(float(table.leaving[row]) if column < 0 else table.cost(row, column) for row, column in enumerate(choice))
        for choice in choices
    )


@given(tables(most=4))
@settings(max_examples=60, deadline=None)
def test_no_assignment_is_cheaper_than_the_one_found(table: CostTable) -> None:
    chosen = solve(table)
    taken = chosen[chosen >= 0]
    assert len(set(taken.tolist())) == len(taken)
    assert table.total(chosen) == cheapest(table)
    assert np.array_equal(chosen, solve(table))


def holds(table: CostTable, row_prices: list[float], column_prices: list[float], chosen: list[int]) -> None:
    """By plain arithmetic: the prices are feasible, and what was chosen has no slack (complementary slackness)."""
    costs, leaving = table.costs.tolist(), table.leaving.tolist()
    columns = table.columns.tolist() if table.columns is not None else [list(range(table.width))] * len(costs)
    assert all(price <= 0 for price in column_prices)
    for row, price in enumerate(row_prices):
        assert price <= leaving[row]
        slacks = {}
        for cost, column in zip(costs[row], columns[row], strict=True):
            slacks[column] = cost - price - column_prices[column]
            assert slacks[column] >= 0
        assert leaving[row] - price == 0 if chosen[row] < 0 else slacks[chosen[row]] == 0
    assert all(column_prices[column] == 0 for column in range(table.width) if column not in chosen)
    paid = [leaving[row] if column < 0 else costs[row][columns[row].index(column)] for row, column in enumerate(chosen)]
    assert sum(paid) == sum(row_prices) + sum(column_prices)


@given(tables())
@settings(max_examples=100, deadline=None)
def test_prices_prove_that_nothing_is_cheaper(table: CostTable) -> None:
    certificate = certify(table)
    holds(table, certificate.row_prices.tolist(), certificate.column_prices.tolist(), solve(table).tolist())


@pytest.mark.parametrize("candidates", [None, 8])
def test_a_big_zone_is_proven_optimal_too(candidates: int | None) -> None:
    random = np.random.default_rng(7)
    costs = np.round(random.random((300, candidates or 150)) * 1e6)
    columns = None
    if candidates:
        columns = np.array([random.permutation(150)[:candidates] for _ in range(300)], dtype=np.int64)
    table = CostTable(costs, np.full(300, 900_000.0), 150, columns)
    certificate = certify(table)
    holds(table, certificate.row_prices.tolist(), certificate.column_prices.tolist(), solve(table).tolist())


def test_a_worse_assignment_shows_a_gap() -> None:
    table = CostTable(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([9.0, 9.0]), 2)
    assert table.total(np.array([1, 0])) - certify(table).bound == 2
