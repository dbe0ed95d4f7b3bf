"""Which courier takes which delivery: the optimal matching of a round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment

from domain.order import Place


@dataclass(frozen=True)
class WaitingDelivery:
    """A delivery without a courier, as a round sees it."""

    delivery_id: str
    dropoff: Place
    seconds_to_promise: float
    """Until the promised time; negative when that has passed."""
    pickup: Place | None = None
    not_by: tuple[str, ...] = ()
    """Couriers who declined it."""


@dataclass(frozen=True)
class FreeCourier:
    """A courier who can take more, as a round sees them."""

    courier_id: str
    at: Place
    slots: int
    """How many more deliveries."""


@dataclass(frozen=True)
class Pair:
    """A courier for a delivery, at a cost in seconds."""

    delivery_id: str
    courier_id: str
    cost_seconds: float


METRES_PER_SECOND = 5.0
"""A bicycle in a city."""
_EARTH_RADIUS_METRES = 6_371_000.0
_LATE_WEIGHT = 3.0
"""A second late costs as much as so many seconds of riding."""
_LATER_SLOT_SECONDS = 60.0
"""Added for each delivery a courier already takes in the round: spread the work before stacking it."""
_FORBIDDEN = 1e9


def match(deliveries: Sequence[WaitingDelivery], couriers: Sequence[FreeCourier]) -> list[Pair]:
    """The cheapest way to give as many deliveries as possible to couriers within their slots.

    Cost of a pair: seconds of travel (courier → pick-up → drop-off, or straight to the drop-off) plus three for each
    second late. One optimal bipartite matching of deliveries with courier slots (scipy's `linear_sum_assignment`).
    """
    slots = [(courier, turn) for courier in couriers for turn in range(min(courier.slots, len(deliveries)))]
    if not deliveries or not slots:
        return []
    costs = np.array([[_cost(delivery, courier, turn) for courier, turn in slots] for delivery in deliveries])
    rows, columns = linear_sum_assignment(costs)
    return [
        Pair(deliveries[row].delivery_id, slots[column][0].courier_id, round(float(costs[row, column]), 3))
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if costs[row, column] < _FORBIDDEN
    ]


def _cost(delivery: WaitingDelivery, courier: FreeCourier, turn: int) -> float:
    if courier.courier_id in delivery.not_by:
        return _FORBIDDEN
    seconds = travel_seconds(courier.at, delivery.pickup, delivery.dropoff) + turn * _LATER_SLOT_SECONDS
    return seconds + _LATE_WEIGHT * max(0.0, seconds - delivery.seconds_to_promise)


def travel_seconds(start: Place, pickup: Place | None, dropoff: Place) -> float:
    """Riding time from the courier to the door, by way of the pick-up where there is one."""
    stops = [start, *([pickup] if pickup else []), dropoff]
    return sum(_metres(here, there) for here, there in pairwise(stops)) / METRES_PER_SECOND


def _metres(here: Place, there: Place) -> float:
    """Great-circle distance (haversine)."""
    lat_here, lat_there = math.radians(here.lat), math.radians(there.lat)
    half_lat, half_lng = (lat_there - lat_here) / 2, math.radians(there.lng - here.lng) / 2
    haversine = math.sin(half_lat) ** 2 + math.cos(lat_here) * math.cos(lat_there) * math.sin(half_lng) ** 2
    return 2 * _EARTH_RADIUS_METRES * math.asin(math.sqrt(min(1.0, haversine)))
