"""Loads: what a courier fetches at one pick-up and brings to one door or, as a bundle, to several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from domain.assignment.travel import TravelModel
from domain.assignment.view import WaitingDelivery
from domain.order import Place

MOST_IN_A_BUNDLE = 3
"""At a fourth door the food is cold; and all orders of the doors can be tried."""


@dataclass(frozen=True)
class Load:
    """Deliveries of one pick-up in the order of their doors. Seconds."""

    deliveries: tuple[WaitingDelivery, ...]
    ready_in: float
    """When the last of them is ready; negative when it has been for so long."""
    doors_after: tuple[float, ...]
    """From the pick-up to each door."""
    free_after: float
    """From the pick-up to when the courier can go on."""
    detour: float
    """What its customers wait longer in sum than if each went alone when ready: the price of the bundle."""

    @property
    def anchor(self) -> Place:
        """Where the courier goes first."""
        return self.deliveries[0].pickup or self.deliveries[0].dropoff

    def pickup_seconds(self, travel: TravelModel) -> float:
        """From arriving at the anchor to the pick-up."""
        return travel.pickup_seconds if self.deliveries[0].pickup else 0.0


def load_of(deliveries: Sequence[WaitingDelivery], travel: TravelModel) -> Load:
    """Put deliveries of one pick-up into the order in which their customers wait the least in sum.

    A delivery without a pick-up goes alone: there the "pick-up" is the courier's arrival at the door.
    """
    first, stop = deliveries[0], travel.dropoff_seconds
    if first.pickup is None:
        assert len(deliveries) == 1, "a bundle needs a pick-up"
        return Load((first,), first.ready_in_seconds, (stop,), 2 * stop, 0.0)
    points = travel.points([first.pickup, *(each.dropoff for each in deliveries)])
    legs = travel.seconds(points[:, None], points[None, :]).tolist()
    ways = (_doors(order, legs, travel) for order in permutations(range(len(deliveries))))
    doors, order = min(ways, key=lambda way: (sum(way[0]), way[1]))
    ready_in = max(each.ready_in_seconds for each in deliveries)
    alone = sum(
        each.ready_in_seconds + travel.pickup_seconds + leg + stop
        for each, leg in zip(deliveries, legs[0][1:], strict=True)
    )
    detour = len(deliveries) * ready_in + sum(doors) - alone if len(deliveries) > 1 else 0.0
    return Load(tuple(deliveries[index] for index in order), ready_in, doors, doors[-1] + stop, detour)


def _doors(
    order: tuple[int, ...], legs: Sequence[Sequence[float]], travel: TravelModel
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """When each door is reached after the pick-up, if they are visited in this order."""
    clock, here, doors = travel.pickup_seconds, 0, []
    for index in order:
        clock += legs[here][index + 1] + travel.dropoff_seconds
        doors.append(clock)
        clock += travel.dropoff_seconds
        here = index + 1
    return tuple(doors), order
