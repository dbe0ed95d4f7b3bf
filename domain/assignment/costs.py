"""What it costs to give a load to a courier: delay, lateness and the courier's time, for a whole round at once.

A column of the table is a courier's turn (the first load, the second, … as far as slots go), a pick-up that a courier
is still fetching from, which one more delivery can join, or a turn that is only planned, never given: the look-ahead.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from domain.assignment.loads import MOST_IN_A_BUNDLE, Load, load_of
from domain.assignment.matching import CostTable, Ints
from domain.assignment.travel import Floats, TravelModel
from domain.assignment.view import Fetching, RoundView, WaitingDelivery
from domain.order import Place

_ANCHORS = 64
"""So many of the open pick-ups are enough to tell who is remote."""
_MILLISECONDS = 1000.0


@dataclass(frozen=True)
class _Joinable:
    courier: int
    fetching: Fetching
    load: Load


class RoundCosts:
    """The columns of a round, and what loads cost there."""

    def __init__(self, view: RoundView, travel: TravelModel) -> None:
        self.view, self.travel = view, travel
        couriers = view.couriers
        self.index = {each.courier_id: index for index, each in enumerate(couriers)}
        self.at = travel.points([each.at for each in couriers])
        self.free = np.array([max(0.0, each.free_in_seconds) for each in couriers])
        self.until = np.array([math.inf if each.until_seconds is None else each.until_seconds for each in couriers])
        # Who may be given loads on top of what joins the present one keeps a slot for that.
        joined = view.policy.stacked
        self.slots = np.array(
            [each.slots - (joined and each.fetching is not None) for each in couriers], dtype=np.int64
        )
        self.soon = int((self.free <= view.policy.soon_seconds).sum())
        self._lay_out_columns()
        self._look_ahead()
        self._weigh()

    def _weigh(self) -> None:
        """How dear couriers' time is in this round, and who is remote."""
        every = math.ceil(len(self.view.deliveries) / _ANCHORS)
        waiting = self.view.deliveries[::every]
        anchors = self.travel.points([each.pickup or each.dropoff for each in waiting])
        self.remote = self.travel.seconds(anchors[:, None], self.at[None, :]).mean(axis=0)
        # A courier's second counts as often as the queue behind it is planned: once, and once more looking ahead.
        queue = min(2.0 if self.looks_ahead else 1.0, len(self.view.deliveries) / max(1, self.soon))
        self.courier_weight = self.view.policy.courier_weight * queue

    def _lay_out_columns(self) -> None:
        """First turns first, in the order of the couriers; then later turns; then what can be joined."""
        most = min(int(self.slots.max(initial=1)), len(self.view.deliveries)) if self.view.policy.stacked else 1
        self.turn_owners = [np.flatnonzero((self.slots > turn) | (turn == 0)) for turn in range(max(1, most))]
        self.turn_columns = []
        width = 0
        for owners in self.turn_owners:
            columns = np.full(len(self.slots), -1, dtype=np.int64)
            columns[owners] = width + np.arange(len(owners))
            self.turn_columns.append(columns)
            width += len(owners)
        self.first_join = width
        self.joinable = [
            _Joinable(index, each.fetching, load_of(each.fetching.deliveries, self.travel))
            for index, each in enumerate(self.view.couriers)
            if each.fetching and each.slots > 0 and len(each.fetching.deliveries) < MOST_IN_A_BUNDLE
        ]
        self.join_columns: dict[Place, list[int]] = defaultdict(list)
        for offset, joinable in enumerate(self.joinable):
            self.join_columns[joinable.fetching.pickup].append(width + offset)
        self.width = width + len(self.joinable)
        joined = [each.courier for each in self.joinable]
        self.owners: Ints = np.concatenate([*self.turn_owners, np.array(joined, dtype=np.int64)])
        turns = [np.full(len(owners), turn) for turn, owners in enumerate(self.turn_owners)]
        self.turns = np.concatenate([*turns, np.zeros(len(joined), dtype=np.int64)])

    def _look_ahead(self) -> None:
        """Plan one more turn of every courier where more is waiting than they can take and caps pass meanwhile.

        Who can still be brought in a courier's next turn, before the cap and the shift's end, can be left now; who
        cannot goes first. Without it all are as dear to leave, and those whose time runs out are lost by chance.
        """
        self.first_planned, ahead = self.width, len(self.slots)
        self.looks_ahead = (
            not self.view.policy.stacked
            and len(self.view.deliveries) > self.soon
            and any(each.seconds_to_cap is not None for each in self.view.deliveries)
            and len(self.view.deliveries) * (self.width + ahead) <= self.view.policy.dense_cells
        )
        if self.looks_ahead:
            self.width += ahead
            self.owners = np.concatenate([self.owners, np.arange(ahead)])
            self.turns = np.concatenate([self.turns, np.zeros(ahead, dtype=np.int64)])

    @property
    def dense(self) -> bool:
        """Whether the table holds every pair."""
        return len(self.view.deliveries) * self.width <= self.view.policy.dense_cells

    def table(self, loads: Sequence[Load]) -> CostTable:
        """The table of a round: every pair, or with the nearest couriers only."""
        if self.dense:
            return CostTable(self.rows(loads), self.leaving(loads), self.width)
        costs, columns = self._nearest(loads)
        return CostTable(costs, self.leaving(loads), self.width, columns)

    def without_overfull(self, costs: Floats, loads: Sequence[Load]) -> Floats:
        """Take later turns away where a bundle among the loads may need their slots."""
        largest = max(len(load.deliveries) for load in loads)
        slots = self.slots[self.owners]
        overfull = (self.turns > 0) & (self.turns > slots - np.minimum(largest, slots))
        return np.where(overfull, np.inf, costs) if overfull.any() else costs

    def leaving(self, loads: Sequence[Load]) -> Floats:
        """The price of giving each load to nobody, milliseconds."""
        return np.round(np.array([self._leaving(load) for load in loads]) * _MILLISECONDS)

    def _leaving(self, load: Load) -> float:
        """Dearer for what would be late with a courier who comes free soon instead: it goes first."""
        policy = self.view.policy
        earliest = max(0.0, load.ready_in)
        pickup = max(earliest, policy.soon_seconds)
        price = 0.0
        for each, after in zip(load.deliveries, load.doors_after, strict=True):
            late = max(0.0, pickup - max(each.seconds_to_promise - after, earliest))
            price += policy.leaving_seconds + policy.late_weight * late
        return price

    def rows(self, loads: Sequence[Load]) -> Floats:
        """Costs with every column, milliseconds."""
        first = self._pairs(loads, None, self.free)
        costs = np.full((len(loads), self.width), np.inf) if self.width > first.shape[1] else first
        for turn, owners in enumerate(self.turn_owners):
            if self.width > first.shape[1]:
                costs[:, self.turn_columns[turn][owners]] = self._at_turn(first, loads, turn)[:, owners]
        for row, column, cost in self._joins(loads):
            costs[row, column] = cost
        if self.looks_ahead:
            costs[:, self.first_planned :] = self._pairs(loads, None, self.free + self.view.policy.soon_seconds)
        return costs

    def _nearest(self, loads: Sequence[Load]) -> tuple[Floats, Ints]:
        """Costs with the nearest couriers' turns and with what can be joined, and the columns they belong to."""
        count = min(self.view.policy.top_candidates, len(self.at))
        anchors = self.travel.points([load.anchor for load in loads])
        near = np.asarray(KDTree(self.at).query(anchors, k=np.arange(1, count + 1))[1], dtype=np.int64)
        first = self._pairs(loads, near, self.free)
        costs, columns = [], []
        for turn, of_courier in enumerate(self.turn_columns):
            places = of_courier[near]
            costs.append(np.where(places >= 0, self._at_turn(first, loads, turn), np.inf))
            columns.append(np.maximum(places, 0))
        joins = list(self._joins(loads))
        per_row: dict[int, int] = defaultdict(int)
        most = max((len(each) for each in self.join_columns.values()), default=0)
        joined, where = np.full((len(loads), most), np.inf), np.zeros((len(loads), most), dtype=np.int64)
        for row, column, cost in joins:
            joined[row, per_row[row]], where[row, per_row[row]] = cost, column
            per_row[row] += 1
        return np.hstack([*costs, joined]), np.hstack([*columns, where])

    def _at_turn(self, first: Floats, loads: Sequence[Load], turn: int) -> Floats:
        """A later turn costs a trip more, and bundles have none: they would need more slots than are counted."""
        if turn == 0:
            return first
        later = first + turn * self.view.policy.stacking_seconds * _MILLISECONDS
        later[[len(load.deliveries) > 1 for load in loads]] = np.inf
        return later

    def _pairs(self, loads: Sequence[Load], near: Ints | None, frees: Floats) -> Floats:
        """Costs of loads with couriers who set out when free: with all of them, or with the `near` ones of each row."""
        here = slice(None) if near is None else near
        free, until, slots, remote = frees[here], self.until[here], self.slots[here], self.remote[here]
        anchors = self.travel.points([load.anchor for load in loads])[:, None]
        way = self.travel.seconds(anchors, self.at[None] if near is None else self.at[near])
        stop = _column([load.pickup_seconds(self.travel) for load in loads])
        ready = _column([load.ready_in for load in loads])
        sizes = _column([len(load.deliveries) for load in loads])
        earliest = np.maximum(ready, 0.0)
        pickup = np.maximum(way + (free + stop), ready)
        busy = pickup - free
        busy += _column([load.free_after for load in loads])
        if np.isfinite(until).any():
            # Time after the shift is taken from nobody.
            np.minimum(busy, np.maximum(until - free, 0.0), out=busy)
        # What has been waited already is the same whoever comes, or nobody: only what is still to come counts.
        costs: Floats = np.multiply(busy, self.courier_weight, out=busy)
        costs += sizes * pickup
        costs += _column([load.detour for load in loads]) - sizes * earliest
        costs -= self.view.policy.remote_weight * remote
        costs[(pickup > until) | (sizes > slots)] = np.inf
        self._add_lateness(costs, pickup, earliest, loads)
        self._forbid_declined(costs, loads, near)
        costs *= _MILLISECONDS
        return np.round(costs, out=costs)

    def _add_lateness(self, costs: Floats, pickup: Floats, earliest: Floats, loads: Sequence[Load]) -> None:
        for place in range(max(len(load.deliveries) for load in loads)):
            rows = np.array([row for row, load in enumerate(loads) if len(load.deliveries) > place])
            doors = _column([loads[row].doors_after[place] for row in rows])
            promises = _column([loads[row].deliveries[place].seconds_to_promise for row in rows])
            latest = _column([_cap(loads[row].deliveries[place]) for row in rows])
            some = slice(None) if len(rows) == len(loads) else rows
            late = pickup[some] - np.maximum(promises - doors, earliest[some])
            np.maximum(late, 0.0, out=late)
            late *= self.view.policy.late_weight
            if np.isfinite(latest).any():
                late[pickup[some] + doors > latest] = np.inf
            costs[some] += late

    def _forbid_declined(self, costs: Floats, loads: Sequence[Load], near: Ints | None) -> None:
        for row, load in enumerate(loads):
            declined = {self.index[one] for each in load.deliveries for one in each.not_by if one in self.index}
            if declined:
                columns = list(declined) if near is None else np.isin(near[row], list(declined))
                costs[row, columns] = np.inf

    def _joins(self, loads: Sequence[Load]) -> Iterator[tuple[int, int, float]]:
        """Which single deliveries can join which pick-ups: row, column, cost in milliseconds."""
        for row, load in enumerate(loads):
            if len(load.deliveries) == 1 and load.deliveries[0].pickup is not None:
                for column in self.join_columns.get(load.deliveries[0].pickup, ()):
                    cost = self._join(self.joinable[column - self.first_join], load)
                    if math.isfinite(cost):
                        yield row, column, round(cost * _MILLISECONDS)

    def _join(self, joinable: _Joinable, alone: Load) -> float:
        """What everybody concerned waits longer if the delivery joins, and what the courier's time costs."""
        delivery, before = alone.deliveries[0], joinable.fetching.pickup_in_seconds
        pickup = max(before, delivery.ready_in_seconds)
        declined = self.view.couriers[joinable.courier].courier_id in delivery.not_by
        if declined or pickup > self.until[joinable.courier]:
            return math.inf
        load = load_of([*joinable.load.deliveries, delivery], self.travel)
        longer = pickup + load.free_after - before - joinable.load.free_after
        waits = self._waits(load, pickup) - self._waits(joinable.load, before)
        return waits - self._waits(alone, max(0.0, alone.ready_in)) + self.courier_weight * longer

    def _waits(self, load: Load, pickup: float) -> float:
        """Until the doors, lateness weighed; infinite if one is after its cap."""
        total = 0.0
        for each, after in zip(load.deliveries, load.doors_after, strict=True):
            door = pickup + after
            if door > _cap(each):
                return math.inf
            total += door + self.view.policy.late_weight * max(0.0, door - each.seconds_to_promise)
        return total


def _cap(delivery: WaitingDelivery) -> float:
    return math.inf if delivery.seconds_to_cap is None else delivery.seconds_to_cap


def _column(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)[:, None]
