"""Why a round decided as it did: worked out again, on request, from the inputs that were stored with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from domain.assignment.certificate import Certificate, certify
from domain.assignment.policy import Plan, decision_of, plan
from domain.assignment.travel import GreatCircle, TravelModel
from domain.assignment.view import Decision, Postponed, RoundView, WaitReason

_RUNNERS_UP = 3

_TEXTS = {
    WaitReason.NO_COURIER: "No courier was online.",
    WaitReason.AT_CAPACITY: "Every courier carried as much as they can.",
    WaitReason.ALL_DECLINED: "Everyone with room for it has declined it.",
    WaitReason.OUT_OF_REACH: "Nobody can bring it within slots, shift and time, or only at more than leaving it costs.",
    WaitReason.OUTBID: "The couriers who could take it do more good elsewhere.",
    WaitReason.CHEAPER_TO_WAIT: "Its courier need not leave yet, or is worth waiting for.",
}


@dataclass(frozen=True)
class RunnerUp:
    """A courier who could have had a delivery. Seconds."""

    courier_id: str
    cost_seconds: float
    reduced_cost_seconds: float
    """By at least so much the whole round would have cost more with this courier."""


@dataclass(frozen=True)
class DeliveryExplanation:
    """What a round made of one delivery."""

    delivery_id: str
    courier_id: str | None
    """Who has it or, where it was postponed, is meant to have it; None: nobody."""
    with_deliveries: tuple[str, ...]
    """The others of its bundle."""
    cost_seconds: float | None
    """The whole bundle's; None: there was nothing to price it with."""
    reason: WaitReason | None
    """Why it was not given in this round; None: it was."""
    text: str
    runners_up: tuple[RunnerUp, ...]
    """The next couriers, the cheapest for the round first."""


@dataclass(frozen=True)
class Explanation:
    """A round's costs and the proof that no other matching of its loads costs less. Seconds."""

    total_cost_seconds: float
    bound_seconds: float
    gap_seconds: float
    """0: proven optimal, among the loads as they were bundled and the candidates they were offered to."""
    deliveries: tuple[DeliveryExplanation, ...]


def explain(view: RoundView, travel: TravelModel | None = None) -> Explanation:
    """Explain the decision that `decide` takes for this view. It takes about as long as two or three rounds."""
    travel = travel or GreatCircle()
    round_plan = plan(view, travel)
    decision = decision_of(view, round_plan, travel)
    if round_plan is None:
        nobody = tuple(
            DeliveryExplanation(each.delivery_id, None, (), None, each.reason, _TEXTS[each.reason], ())
            for each in decision.postponed
        )
        return Explanation(0.0, 0.0, 0.0, nobody)
    certificate = certify(round_plan.table)
    total = round_plan.total
    return Explanation(
        total_cost_seconds=total / 1000,
        bound_seconds=certificate.bound / 1000,
        gap_seconds=(total - certificate.bound) / 1000,
        deliveries=tuple(
            each for row in range(len(round_plan.loads)) for each in _load(round_plan, decision, certificate, row)
        ),
    )


def _load(round_plan: Plan, decision: Decision, certificate: Certificate, row: int) -> tuple[DeliveryExplanation, ...]:
    column = int(round_plan.chosen[row])
    waiting = {each.delivery_id: each for each in decision.postponed}
    ids = [each.delivery_id for each in round_plan.loads[row].deliveries]
    courier_id = round_plan.courier_id(column) if column >= 0 else None
    cost = round_plan.table.cost(row, column) / 1000 if column >= 0 else float(round_plan.table.leaving[row]) / 1000
    runners_up = _runners_up(round_plan, certificate, row, courier_id)
    return tuple(
        DeliveryExplanation(
            delivery_id=one,
            courier_id=courier_id,
            with_deliveries=tuple(other for other in ids if other != one),
            cost_seconds=cost,
            reason=waiting[one].reason if one in waiting else None,
            text=_text(waiting.get(one), runners_up),
            runners_up=runners_up,
        )
        for one in ids
    )


def _runners_up(round_plan: Plan, certificate: Certificate, row: int, courier_id: str | None) -> tuple[RunnerUp, ...]:
    """The couriers with the lowest reduced costs: what a pair costs more than the prices of its row and column."""
    table = round_plan.table
    columns = np.arange(table.width) if table.columns is None else table.columns[row]
    reduced = table.costs[row] - certificate.row_prices[row] - certificate.column_prices[columns]
    found: dict[str, RunnerUp] = {}
    for place in np.argsort(reduced, kind="stable"):
        if not np.isfinite(reduced[place]) or len(found) == _RUNNERS_UP:
            break
        other = round_plan.courier_id(int(columns[place]))
        if other != courier_id and other not in found:
            found[other] = RunnerUp(other, float(table.costs[row, place]) / 1000, float(reduced[place]) / 1000)
    return tuple(found.values())


def _text(waiting: Postponed | None, runners_up: tuple[RunnerUp, ...]) -> str:
    if waiting is not None:
        return _TEXTS[waiting.reason]
    if not runners_up:
        return "Nobody else could have it."
    best = runners_up[0]
    return (
        f"With the next best, {best.courier_id}, the round would cost at least {best.reduced_cost_seconds:.0f} s more."
    )
