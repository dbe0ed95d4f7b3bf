"""Proof that a round is optimal: prices on rows and columns that no assignment can beat (linear programming duality).

With `row` the price of each row and `column` the price of each column, column prices at most 0, row prices at most
the price of leaving, and row + column at most the cost of every pair, the sum of all prices is a lower bound of what
any assignment costs. Where it equals what the round cost, the round was optimal. Whoever doubts it need only check
those inequalities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from domain.assignment.matching import CostTable, Ints, solve
from domain.assignment.travel import Floats


@dataclass(frozen=True)
class Certificate:
    """Prices that bound the cost of every assignment from below. Milliseconds."""

    row_prices: Floats
    column_prices: Floats

    @property
    def bound(self) -> float:
        """No assignment costs less."""
        return float(self.row_prices.sum() + self.column_prices.sum())


def certify(table: CostTable) -> Certificate:
    """The best bound of a table. It is computed from the table alone, whatever a round may have chosen."""
    if not table.costs.size:
        return Certificate(table.leaving.copy(), np.zeros(table.width))
    gains = table.gains()
    chosen = solve(table)
    column_prices = _column_prices(table, gains, chosen)
    offered = gains - (column_prices if table.columns is None else column_prices[table.columns])
    # Always valid, whatever the column prices: a row's price is the least that any choice asks of it.
    row_prices = np.minimum(offered.min(axis=1), 0.0)
    return Certificate(row_prices + table.leaving, column_prices)


def _column_prices(table: CostTable, gains: Floats, chosen: Ints) -> Floats:
    """Shortest paths (Bellman and Ford): a column may ask no more than what its rivals would lose elsewhere.

    A pass per step of the longest chain of displacements; in an optimal matching no chain goes round for ever.
    """
    prices = np.zeros(table.width)
    taken = chosen >= 0
    own = np.zeros(len(chosen))
    if table.columns is None:
        own[taken] = gains[taken, chosen[taken]]
    else:
        own[taken] = np.where(table.columns == chosen[:, None], gains, 0.0).min(axis=1)[taken]
    for _ in range(len(chosen) + 1):
        kept = np.where(taken, own - prices[np.maximum(chosen, 0)], 0.0)
        asked = gains - kept[:, None]
        if table.columns is None:
            lower = np.minimum(prices, asked.min(axis=0))
        else:
            lower = prices.copy()
            np.minimum.at(lower, table.columns.ravel(), asked.ravel())
        if np.array_equal(lower, prices):
            break
        prices = lower
    return prices
