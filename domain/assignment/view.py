"""What a round sees and what it decides. Durations are seconds from the moment of the round.

Everything here is plain data: `dataclasses.asdict` makes JSON of a view, `RoundView.from_json` reads it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from domain.order import Place


@dataclass(frozen=True)
class WaitingDelivery:
    """A delivery without a courier, as a round sees it."""

    delivery_id: str
    dropoff: Place
    seconds_to_promise: float
    """Until the promised time; negative when that has passed."""
    pickup: Place | None = None
    """Without one, the way counts from the courier to the door."""
    not_by: tuple[str, ...] = ()
    """Couriers who declined it."""
    ready_in_seconds: float = 0.0
    """Until it can be picked up; negative when it has been ready for so long."""
    waiting_seconds: float = 0.0
    """Since it was requested."""
    seconds_to_cap: float | None = None
    """After which nobody wants it any more; None: never."""


@dataclass(frozen=True)
class Fetching:
    """A pick-up that a courier is still on the way to, or waits at: deliveries of the same place can join."""

    pickup: Place
    pickup_in_seconds: float
    deliveries: tuple[WaitingDelivery, ...]
    """What will be picked up there, in the order of the doors."""


@dataclass(frozen=True)
class FreeCourier:
    """A courier who can take more, now or soon, as a round sees them."""

    courier_id: str
    at: Place
    """Where, when free."""
    slots: int
    """How many more deliveries."""
    free_in_seconds: float = 0.0
    until_seconds: float | None = None
    """End of the shift: no pick-up after that; None: open."""
    fetching: Fetching | None = None


@dataclass(frozen=True)
class Pair:
    """A courier for a delivery, at a cost in seconds. A bundle's follow each other in the order of their doors."""

    delivery_id: str
    courier_id: str
    cost_seconds: float
    """The bundle's cost in equal shares, for a delivery that is not alone."""


class WaitReason(StrEnum):
    """Why a round gave a delivery to nobody."""

    NO_COURIER = "no_courier"
    """Nobody is online."""
    AT_CAPACITY = "at_capacity"
    """Everybody has as much as they can carry."""
    ALL_DECLINED = "all_declined"
    OUT_OF_REACH = "out_of_reach"
    """Nobody can have it in time (shift, cap, slots), or only at more than the price of leaving it."""
    OUTBID = "outbid"
    """Others need the couriers more."""
    CHEAPER_TO_WAIT = "cheaper_to_wait"
    """A courier is meant to have it, but need not leave yet, or is worth waiting for."""


@dataclass(frozen=True)
class Postponed:
    """A delivery that stays without a courier for now."""

    delivery_id: str
    reason: WaitReason
    look_again_seconds: float | None = None
    """When a round may do more although nothing else happened; None: only news changes anything."""
    courier_id: str | None = None
    """Who is meant to have it then."""


@dataclass(frozen=True)
class Decision:
    """What a round decides: what is given now, and what waits."""

    pairs: tuple[Pair, ...]
    postponed: tuple[Postponed, ...]


@dataclass(frozen=True)
class Policy:
    """The few numbers of the policy, each in seconds of one customer's waiting. One setting serves every city."""

    courier_weight: float = 0.6
    """A second of a courier's time, when as much is waiting as couriers are free soon; less is waiting: less in
    proportion. What it costs others is a queue's wait, and without a queue there is none."""
    late_weight: float = 0.5
    """A second after the promise, on top of its waiting."""
    remote_weight: float = 0.2
    """A second of a courier's mean way to the open pick-ups: who is far from the demand is given first, for who is
    near is worth keeping."""
    leaving_seconds: float = 86_400.0
    """Leaving a delivery without any courier: a day, so that it happens only when nobody can come."""
    most_detour_seconds: float = 900.0
    """What a bundle's customers may wait longer in sum by one more delivery, unless all of them have a cap."""
    stacking_seconds: float = 600.0
    """For each load that a courier is given before in the same round: about a trip."""
    soon_seconds: float = 1_200.0
    """A courier who is free within so long counts as free soon; what is left waits so long, and the turn
    after the next begins so much later: about a trip or two."""
    round_seconds: float = 60.0
    """Until the next round at the latest: what need not leave before it can wait for it."""
    stacked: bool = True
    """Whether a courier may be given a load before the last one is done."""
    top_candidates: int = 16
    """How many nearest couriers a delivery is offered to in a round too big for a dense table."""
    dense_cells: int = 6_000_000
    """Up to so many pairs a dense table holds: 2,000 deliveries and 1,000 couriers of three slots."""


@dataclass(frozen=True)
class RoundView:
    """A round's inputs."""

    deliveries: tuple[WaitingDelivery, ...]
    couriers: tuple[FreeCourier, ...]
    policy: Policy = Policy()

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> RoundView:
        """Read what `asdict` wrote. Raises KeyError or TypeError if it is something else."""
        return cls(
            tuple(_delivery(each) for each in stored["deliveries"]),
            tuple(_courier(each) for each in stored["couriers"]),
            Policy(**stored["policy"]),
        )


def _delivery(stored: Mapping[str, Any]) -> WaitingDelivery:
    places = {"dropoff": Place(**stored["dropoff"]), "pickup": Place(**stored["pickup"]) if stored["pickup"] else None}
    return WaitingDelivery(**{**stored, **places, "not_by": tuple(stored["not_by"])})


def _courier(stored: Mapping[str, Any]) -> FreeCourier:
    fetching = stored["fetching"]
    if fetching is not None:
        deliveries = tuple(_delivery(each) for each in fetching["deliveries"])
        fetching = Fetching(Place(**fetching["pickup"]), fetching["pickup_in_seconds"], deliveries)
    return FreeCourier(**{**stored, "at": Place(**stored["at"]), "fetching": fetching})
