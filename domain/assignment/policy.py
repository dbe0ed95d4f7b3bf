"""The dispatch policy: who takes what, what goes together, and what can wait.

A round prices every load (one delivery, or a bundle of one pick-up) with every courier who is free or soon will be,
and takes the cheapest matching. Two deliveries become a bundle where that makes the whole matching cheaper. Then it
commits only what cannot wait for the next round: until then a better courier may come free, or a delivery of the same
pick-up may come in.

The problem, and the ideas of matching in a rolling horizon, of bundles and of late commitment: Reyes, Erera,
Savelsbergh, Sahasrabudhe and O'Neil, "The Meal Delivery Routing Problem" (2018). The policy is pure and
deterministic; a zone's rounds and the benchmark's simulator run this same function.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from domain.assignment.costs import RoundCosts
from domain.assignment.loads import MOST_IN_A_BUNDLE, Load, load_of
from domain.assignment.matching import CostTable, Ints, solve
from domain.assignment.travel import GreatCircle, TravelModel
from domain.assignment.view import Decision, Pair, Postponed, RoundView, WaitReason
from domain.order import Place

_TRIAL_CELLS = 4_000_000
"""Bundles are tried by solving the round again: at most so many cells a round (a second or less)."""
_MOST_AT_A_PLACE = 40
"""Of so many loads of one pick-up, pairs are tried; the others wait for a later round."""


@dataclass(frozen=True)
class Plan:
    """A round's loads, what they cost, and the matching. `chosen`: a column of the table each, or -1."""

    costs: RoundCosts
    loads: tuple[Load, ...]
    table: CostTable
    chosen: Ints

    @property
    def total(self) -> float:
        """Milliseconds."""
        return self.table.total(self.chosen)

    def courier_id(self, column: int) -> str:
        """Whose column it is."""
        return self.costs.view.couriers[int(self.costs.owners[column])].courier_id


def decide(view: RoundView, travel: TravelModel | None = None) -> Decision:
    """Decide a round. Couriers declined, slots, shifts and caps are kept; the same view gives the same decision."""
    travel = travel or GreatCircle()
    return decision_of(view, plan(view, travel), travel)


def decision_of(view: RoundView, round_plan: Plan | None, travel: TravelModel) -> Decision:
    """What of a plan is given now, and what waits."""
    if round_plan is None:
        reason = WaitReason.AT_CAPACITY if view.couriers else WaitReason.NO_COURIER
        return Decision((), tuple(Postponed(each.delivery_id, reason) for each in view.deliveries))
    pairs: list[Pair] = []
    postponed: list[Postponed] = []
    for row, load in enumerate(round_plan.loads):
        column = int(round_plan.chosen[row])
        if column < 0:
            reason = why_left(round_plan, row)
            postponed += [Postponed(each.delivery_id, reason) for each in load.deliveries]
            continue
        courier_id = round_plan.courier_id(column)
        waits = _can_wait_seconds(round_plan, load, column, travel)
        if waits > 0:
            reason = WaitReason.CHEAPER_TO_WAIT
            postponed += [Postponed(each.delivery_id, reason, waits, courier_id) for each in load.deliveries]
        else:
            share = round_plan.table.cost(row, column) / 1000 / len(load.deliveries)
            pairs += [Pair(each.delivery_id, courier_id, round(share, 3)) for each in load.deliveries]
    return Decision(tuple(pairs), tuple(postponed))


def plan(view: RoundView, travel: TravelModel) -> Plan | None:
    """The matching behind a decision; None if there is nothing to match."""
    view = replace(view, couriers=tuple(each for each in view.couriers if each.slots > 0))
    if not view.deliveries or not view.couriers:
        return None
    costs = RoundCosts(view, travel)
    loads = [load_of([each], travel) for each in view.deliveries]
    table = costs.table(loads)
    singles = Plan(costs, tuple(loads), table, solve(table))
    return _bundled(singles, travel) if costs.dense else singles


def _bundled(singles: Plan, travel: TravelModel) -> Plan:
    """Merge loads of one pick-up as long as that makes the matching cheaper; the smallest detour is tried first."""
    best, costs = singles, singles.table.costs
    known: dict[frozenset[str], Load] = {}
    refused: set[frozenset[str]] = set()
    trials = _TRIAL_CELLS // max(1, costs.size)
    while trials > 0:
        for left, right, merged in _mergeable(best, known, refused, travel):
            trials -= 1
            kept = [row for row in range(len(best.loads)) if row not in (left, right)]
            loads = (*(best.loads[row] for row in kept), merged)
            rows = np.vstack([costs[kept], best.costs.rows([merged])])
            table = CostTable(best.costs.without_overfull(rows, loads), best.costs.leaving(loads), best.table.width)
            trial = Plan(best.costs, loads, table, solve(table))
            if trial.total < best.total:
                best, costs = trial, rows
                break
            refused.add(_ids(merged))
            if trials <= 0:
                break
        else:
            break
    return best


def _mergeable(
    best: Plan, known: dict[frozenset[str], Load], refused: set[frozenset[str]], travel: TravelModel
) -> list[tuple[int, int, Load]]:
    """Pairs of loads of one pick-up that may go together, by what their customers would wait longer.

    Where all of them have a cap, that and the price of waiting are limit enough: in a rush a long detour brings those
    whom nobody would fetch.
    """
    loads, most = best.loads, best.costs.view.policy.most_detour_seconds
    places: dict[Place, list[int]] = defaultdict(list)
    for row, load in enumerate(loads):
        if load.deliveries[0].pickup is not None and len(places[load.deliveries[0].pickup]) < _MOST_AT_A_PLACE:
            places[load.deliveries[0].pickup].append(row)
    found: list[tuple[float, int, int, Load]] = []
    for rows in places.values():
        for left, right in combinations(rows, 2):
            deliveries = loads[left].deliveries + loads[right].deliveries
            ids = frozenset(each.delivery_id for each in deliveries)
            if len(deliveries) > MOST_IN_A_BUNDLE or ids in refused:
                continue
            if ids not in known:
                known[ids] = load_of(deliveries, travel)
            longer = known[ids].detour - loads[left].detour - loads[right].detour
            if longer <= most or all(each.seconds_to_cap is not None for each in deliveries):
                found.append((longer, left, right, known[ids]))
    return [(left, right, load) for _, left, right, load in sorted(found, key=lambda each: each[:3])]


def _ids(load: Load) -> frozenset[str]:
    return frozenset(each.delivery_id for each in load.deliveries)


def why_left(round_plan: Plan, row: int) -> WaitReason:
    """Why a load got no column."""
    costs, load = round_plan.table.costs[row], round_plan.loads[row]
    online = {each.courier_id for each in round_plan.costs.view.couriers}
    if any(online <= set(each.not_by) for each in load.deliveries):
        return WaitReason.ALL_DECLINED
    return WaitReason.OUT_OF_REACH if costs.min() >= round_plan.table.leaving[row] else WaitReason.OUTBID


def _can_wait_seconds(round_plan: Plan, load: Load, column: int, travel: TravelModel) -> float:
    """How long nothing is lost by not giving this load to this courier yet; 0: give it now."""
    costs, courier = round_plan.costs, int(round_plan.costs.owners[column])
    policy = costs.view.policy
    if column >= costs.first_planned:
        return policy.round_seconds
    if column >= costs.first_join:
        # Whoever waits at the pick-up anyway can be told to take one more until the last moment.
        slack = costs.joinable[column - costs.first_join].fetching.pickup_in_seconds
    else:
        way = float(travel.seconds(costs.at[[courier]], travel.points([load.anchor]))[0])
        slack = load.ready_in - way - load.pickup_seconds(travel)
        free = float(costs.free[courier])
        if free > 0:
            return max(free, slack)
    return slack if slack >= policy.round_seconds else 0.0
