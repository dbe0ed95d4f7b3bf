"""What happened, as a table, and whether it is what was promised."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from local.demo.receiver import EventReceiver, order_broken
from local.demo.shop import ENDS, Order

_NAMED = 3
"""So many examples of a failure are named."""


@dataclass
class Outcome:
    """Everything that a demo leaves behind."""

    orders: Sequence[Order]
    receiver: EventReceiver
    retries: Counter[str]
    surprises: Sequence[str]
    conflicts: dict[str, int] = field(default_factory=dict)
    invariants: Any = None
    drift: Any = None

    @property
    def accepted(self) -> list[Order]:
        """The orders that the API took."""
        return [order for order in self.orders if order.accepted]

    def of(self, status: str) -> int:
        """How many orders are in a status."""
        return sum(order.status == status for order in self.orders)

    def late(self) -> int:
        """How many of the demo's deliveries were late."""
        lanes = (self.receiver.lanes.get(order.order_id or "", ()) for order in self.accepted)
        return sum(any(seen.type == "delivery.late" for seen in lane) for lane in lanes)

    def missing(self) -> list[str]:
        """Orders that ended and have not told it all."""
        told = []
        for order in self.accepted:
            if order.status in ENDS:
                gone = self.receiver.missing(order.order_id or "", order.status or "", confirmed=order.confirmed)
                told += [f"{order.order_id} lacks {', '.join(sorted(gone))}"] if gone else []
        return told

    def broken(self) -> list[str]:
        """Orders whose events came in another order than they happened."""
        told = (
            (order.order_id, order_broken(self.receiver.lanes.get(order.order_id or "", []))) for order in self.accepted
        )
        return [f"{order_id}: {what}" for order_id, what in told if what]


def failures(outcome: Outcome) -> list[str]:
    """Every promise that was not kept, a sentence each; none when all is well."""
    kept: list[tuple[str, list[str]]] = [
        (
            "did not get as far as promised",
            [f"{order.key}: {order.problem}" for order in outcome.orders if order.problem],
        ),
        ("lack events", outcome.missing()),
        ("told their events out of order", outcome.broken()),
    ]
    told = [_sentence(f"{len(found)} orders {what}", found) for what, found in kept if found]
    if outcome.surprises:
        told.append(
            _sentence(f"{len(outcome.surprises)} calls of couriers were answered in a strange way", outcome.surprises)
        )
    if outcome.receiver.forged:
        told.append(f"{outcome.receiver.forged} requests to the receiver carried no good signature.")
    if bugs := outcome.retries["HTTP 500"]:
        told.append(f"{bugs} calls were answered 500, which no outage explains.")
    return told + _unkept(outcome.invariants, outcome.drift)


def _unkept(invariants: Any, drift: Any) -> list[str]:
    """What the stack itself says against it."""
    if invariants is None or drift is None:
        return ["The invariants or the drift could not be read."]
    told = [
        f"The invariant '{check['name']}' is violated {check['violations']} times: {check['sample']}"
        for check in invariants["checks"]
        if not check["ok"]
    ]
    if drift["driftedProducts"]:
        told.append(f"{drift['driftedProducts']} products drifted.")
    return told


def _sentence(what: str, examples: Sequence[str]) -> str:
    more = "; …" if len(examples) > _NAMED else ""
    return f"{what}: {'; '.join(examples[:_NAMED])}{more}"


def table(outcome: Outcome) -> list[tuple[str, str]]:
    """What happened, a row each."""
    orders, receiver = outcome.orders, outcome.receiver
    checks = outcome.invariants["checks"] if outcome.invariants else []
    zero = sum(order.zero_lines for order in orders)
    decided = [order.decided_seconds for order in orders if order.decided_seconds is not None]
    confirmed = [order.confirm_seconds for order in orders if order.confirm_seconds is not None]
    return [
        ("baskets", str(len(orders))),
        ("422 for quantity 0", f"{zero}, ordered again without such lines; {outcome.of('INVALID')} had no other"),
        ("orders accepted", str(len(outcome.accepted))),
        ("  delivered", str(outcome.of("DELIVERED"))),
        (
            "  cancelled",
            f"{outcome.of('CANCELLED')} ({sum(o.picked_up_first for o in orders)} more came after the pick-up)",
        ),
        ("  expired", str(outcome.of("EXPIRED"))),
        ("  not ended", str(sum(order.status not in ENDS for order in outcome.accepted))),
        ("orders rejected", f"{outcome.of('REJECTED')} for lack of stock"),
        ("undecided", str(sum(order.status is None for order in orders))),
        ("POST /api/orders", _latencies(decided)),
        ("POST …/confirm", _latencies(confirmed)),
        ("calls made again", _totals(outcome.retries)),
        ("events received", f"{receiver.received}, {receiver.duplicates} of them again"),
        ("  missing", f"those of {len(outcome.missing())} orders"),
        ("  out of order", f"in {len(outcome.broken())} orders"),
        ("assignment conflicts", _totals(outcome.conflicts)),
        ("late deliveries", str(outcome.late())),
        ("invariants", f"{sum(check['ok'] for check in checks)} of {len(checks)} hold" if checks else "unknown"),
        ("drifted products", str(outcome.drift["driftedProducts"]) if outcome.drift else "unknown"),
    ]


def conflicts_between(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """The conflicts that came in between, by source and kind."""
    news = {name: total - before.get(name, 0) for name, total in after.items()}
    return {name: total for name, total in news.items() if total}


def _totals(counts: Mapping[str, int]) -> str:
    if not counts:
        return "0"
    return f"{sum(counts.values())} ({', '.join(f'{name} {count}' for name, count in sorted(counts.items()))})"


def _latencies(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    shown = ((share, ordered[math.ceil(share / 100 * len(ordered)) - 1]) for share in (50, 95, 99))
    return ", ".join(f"p{share} {_duration(value)}" for share, value in shown)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
