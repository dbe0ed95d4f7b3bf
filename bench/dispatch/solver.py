"""The solver beside bare scipy on the same matrix, and its certificate, on made-up zones of fixed seeds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from domain.assignment.certificate import certify
from domain.assignment.costs import RoundCosts
from domain.assignment.loads import load_of
from domain.assignment.matching import CostTable, solve
from domain.assignment.travel import GreatCircle
from domain.assignment.view import FreeCourier, Policy, RoundView, WaitingDelivery
from domain.order import Place

_REPEATS = 3


@dataclass(frozen=True)
class SolverRun:
    """One size: seconds (the best of three), and the certificate's gap."""

    name: str
    bare: float
    solved: float
    table: float
    gap_seconds: float
    certified: float


def made_up_zone(deliveries: int, couriers: int, seed: int = 1) -> RoundView:
    """Deliveries and couriers over a city of about 30 by 30 km; everybody can take one."""
    random = np.random.default_rng(seed)

    def places(count: int) -> list[Place]:
        return [Place(float(lat), float(lng)) for lat, lng in random.random((count, 2)) * [0.27, 0.44] + [52.4, 13.2]]

    waiting = zip(places(deliveries), places(deliveries), random.random(deliveries) * 3600, strict=True)
    return RoundView(
        tuple(
            WaitingDelivery(f"d{n}", door, float(promise), pickup) for n, (pickup, door, promise) in enumerate(waiting)
        ),
        tuple(FreeCourier(f"c{n}", at, 1) for n, at in enumerate(places(couriers))),
        replace(Policy(), stacked=False),
    )


def measure(deliveries: int, couriers: int) -> SolverRun:
    """Build a zone's table, and solve it by bare scipy and by us."""
    view, travel = made_up_zone(deliveries, couriers), GreatCircle()
    loads = [load_of([each], travel) for each in view.deliveries]
    costs = RoundCosts(view, travel)
    table, built = _timed(lambda: costs.table(loads))
    chosen, solved = _timed(lambda: solve(table))
    certificate, certified = _timed(lambda: certify(table))
    kind = "dense" if costs.dense else f"sparse, {view.policy.top_candidates} nearest"
    return SolverRun(
        name=f"{deliveries:,} x {couriers:,} {kind}",
        bare=_bare(table),
        solved=solved,
        table=built,
        gap_seconds=(table.total(chosen) - certificate.bound) / 1000,
        certified=certified,
    )


def _bare(table: CostTable) -> float:
    """The one call of scipy, on the matrix made ready for it."""
    count = len(table.leaving)
    if table.columns is None:
        return _timed(lambda: linear_sum_assignment(table.costs))[1]
    candidates = table.columns.shape[1]
    weights = np.hstack([table.costs - table.costs.min() + 1, (table.leaving - table.costs.min() + 1)[:, None]])
    columns = np.hstack([table.columns, table.width + np.arange(count)[:, None]])
    ends = np.arange(count + 1) * (candidates + 1)
    matrix = csr_array((weights.ravel(), columns.ravel(), ends), shape=(count, table.width + count))
    return _timed(lambda: min_weight_full_bipartite_matching(matrix))[1]


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    best, answer = float("inf"), None
    for _ in range(_REPEATS):
        started = time.perf_counter()
        answer = work()
        best = min(best, time.perf_counter() - started)
    return answer, best
