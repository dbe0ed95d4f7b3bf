"""Which row takes which column: the optimal matching of a cost table, in one call of scipy.

Rows may stay without a column, each at a price of its own ("leaving"). Costs are whole milliseconds held as floats,
so that sums are exact and a certificate's gap is 0, not nearly 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from domain.assignment.travel import Floats

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class CostTable:
    """What each row costs with its candidate columns, and with none."""

    costs: Floats
    """One row each, whole milliseconds; `inf` where the two must not meet."""
    leaving: Floats
    """The price of leaving each row without a column; finite."""
    width: int
    """How many columns there are."""
    columns: Ints | None = None
    """Which column each cost belongs to (none twice in a row); None for a dense table: all of them, in order."""

    def gains(self) -> Floats:
        """What a pair costs more than leaving its row: never above 0, for nobody takes what is cheaper left."""
        gains: Floats = np.subtract(self.costs, self.leaving[:, None])
        return np.minimum(gains, 0.0, out=gains)

    def cost(self, row: int, column: int) -> float:
        """What one pair costs, milliseconds; `inf` where they must not meet."""
        if self.columns is None:
            return float(self.costs[row, column])
        return float(self.costs[row, self.columns[row] == column].min(initial=np.inf))

    def total(self, chosen: Ints) -> float:
        """What the round costs when these columns are chosen (-1: left), in milliseconds."""
        rows = np.arange(len(chosen))
        if self.columns is None:
            taken = self.costs[rows, np.maximum(chosen, 0)] if self.width else self.leaving
        else:
            taken = np.where(self.columns == chosen[:, None], self.costs, np.inf).min(axis=1, initial=np.inf)
        return float(np.where(chosen < 0, self.leaving, taken).sum())


def solve(table: CostTable) -> Ints:
    """The column of each row (-1: left) in a matching of the lowest total cost. Deterministic."""
    if not table.costs.size:
        return np.full(len(table.leaving), -1, dtype=np.int64)
    return _solve_dense(table) if table.columns is None else _solve_sparse(table, table.columns)


def _solve_dense(table: CostTable) -> Ints:
    """A pair that gains nothing stands for a row left: the table needs no columns for that."""
    gains = table.gains()
    rows, columns = linear_sum_assignment(gains)
    chosen = np.full(len(gains), -1, dtype=np.int64)
    chosen[rows] = np.where(gains[rows, columns] < 0, columns, -1)
    return chosen


def _solve_sparse(table: CostTable, columns: Ints) -> Ints:
    """Each row gets a dummy column of its own for being left, or the solver's search for a full matching may take
    exponential time (scipy#26147); and all weights are above 0, for zeros vanish from sparse input (scipy#17269)."""
    count = len(columns)
    gains = table.gains()
    worth = gains < 0
    # Every row ends with exactly one entry, so adding a constant to all of them changes nothing.
    constant = 1.0 - float(gains.min(initial=0.0))
    per_row = worth.sum(axis=1)
    ends = np.cumsum(per_row + 1)
    weights, places = np.empty(ends[-1]), np.empty(ends[-1], dtype=np.int32)
    last = np.zeros(ends[-1], dtype=bool)
    last[ends - 1] = True
    weights[last], places[last] = constant, table.width + np.arange(count)
    weights[~last], places[~last] = gains[worth] + constant, columns[worth]
    matrix = csr_array((weights, places, np.concatenate(([0], ends))), shape=(count, table.width + count))
    rows, found = min_weight_full_bipartite_matching(matrix)
    chosen = np.full(count, -1, dtype=np.int64)
    chosen[rows] = np.where(found < table.width, found, -1)
    return chosen
