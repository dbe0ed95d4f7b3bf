"""A day of an instance, run through the dispatch policy: a round every minute, and couriers who do as they are told.

The rules are those of the Meal Delivery Routing Problem (Reyes, Erera, Savelsbergh, Sahasrabudhe and O'Neil 2018) as
its instances' description states them, without prepositioning and with assignment updates: what is assigned is not
taken back, a courier takes no new assignment before the last one is done, but orders of the same restaurant can join
until the pick-up. The policy sees an order from its placement on, and the couriers' shifts, which are a plan and
known beforehand.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bench.dispatch.checker import Delivered, Trip
from bench.dispatch.instances import Courier, Instance, Order, Point
from domain.assignment.loads import MOST_IN_A_BUNDLE, load_of
from domain.assignment.policy import decide
from domain.assignment.travel import Floats, distance
from domain.assignment.view import Fetching, FreeCourier, Policy, RoundView, WaitingDelivery
from domain.order import Place

_MINUTE = 60.0


@dataclass(frozen=True)
class MinuteTravel:
    """Metres on a plane, and whole minutes, rounded up."""

    metres_per_minute: float
    pickup_seconds: float
    dropoff_seconds: float

    def points(self, places: Sequence[Place]) -> Floats:
        """Places of the simulator are metres: `lng` is x, `lat` is y."""
        return np.array([(place.lng, place.lat) for place in places], dtype=np.float64).reshape(-1, 2)

    def seconds(self, starts: Floats, ends: Floats) -> Floats:
        """The straight line over the speed, in minutes, rounded up."""
        minutes: Floats = np.ceil(distance(starts, ends) / self.metres_per_minute)
        return minutes * _MINUTE


@dataclass
class _Rider:
    """A courier; with the trip under way, `at` and `free` are its end."""

    courier: Courier
    at: Point
    free: float
    assigned: dict[str, float] = field(default_factory=dict)
    """The orders of the last trip and when each was given."""
    left: float = 0.0
    there: float = 0.0
    """The earliest pick-up: arrival and half of the service."""
    pickup: float = -math.inf


class Simulator:
    """Keeps the clock, the couriers and the open orders; the policy decides."""

    def __init__(self, instance: Instance, policy: Policy | None = None) -> None:
        self._instance = instance
        # A courier of these instances takes nothing new before the last trip is done.
        self._policy = replace(policy or Policy(), stacked=False, round_seconds=_MINUTE)
        self._travel = MinuteTravel(
            instance.metres_per_minute, instance.pickup_service / 2 * _MINUTE, instance.dropoff_service / 2 * _MINUTE
        )
        self._orders = {each.order_id: each for each in instance.orders}
        self._riders = {each.courier_id: _Rider(each, each.start, each.on) for each in instance.couriers}
        self._open: dict[str, Order] = {}
        self._trips: dict[tuple[str, float], Trip] = {}

    def run(self) -> list[Trip]:
        """Run from the first placement until nothing is open; an order past the maximum is given up."""
        coming = sorted(self._instance.orders, key=lambda order: (order.placed, order.order_id), reverse=True)
        now = float(math.ceil(coming[-1].placed)) if coming else 0.0
        while coming or self._open:
            while coming and coming[-1].placed <= now:
                order = coming.pop()
                self._open[order.order_id] = order
            for order_id in [key for key, order in self._open.items() if order.placed + self._instance.maximum < now]:
                del self._open[order_id]
            if self._open:
                self._round(now)
            now += 1.0
        return list(self._trips.values())

    def _round(self, now: float) -> None:
        deliveries = tuple(self._waiting(order, now) for order in self._open.values())
        couriers = tuple(self._seen(each, now) for each in self._riders.values() if each.courier.off >= now)
        given: dict[str, list[Order]] = defaultdict(list)
        for pair in decide(RoundView(deliveries, couriers, self._policy), self._travel).pairs:
            given[pair.courier_id].append(self._open.pop(pair.delivery_id))
        for courier_id, orders in given.items():
            self._send(self._riders[courier_id], orders, now)

    def _waiting(self, order: Order, now: float) -> WaitingDelivery:
        return WaitingDelivery(
            delivery_id=order.order_id,
            pickup=_place(self._instance.restaurants[order.restaurant_id]),
            dropoff=_place(order.door),
            seconds_to_promise=(order.placed + self._instance.target - now) * _MINUTE,
            ready_in_seconds=(order.ready - now) * _MINUTE,
            waiting_seconds=(now - order.placed) * _MINUTE,
            seconds_to_cap=(order.placed + self._instance.maximum - now) * _MINUTE,
        )

    def _seen(self, rider: _Rider, now: float) -> FreeCourier:
        fetching = None
        if rider.pickup >= now:
            deliveries = tuple(self._waiting(self._orders[each], now) for each in rider.assigned)
            assert deliveries[0].pickup is not None
            fetching = Fetching(deliveries[0].pickup, (rider.pickup - now) * _MINUTE, deliveries)
        return FreeCourier(
            courier_id=rider.courier.courier_id,
            at=_place(rider.at),
            slots=MOST_IN_A_BUNDLE,
            free_in_seconds=(rider.free - now) * _MINUTE,
            until_seconds=(rider.courier.off - now) * _MINUTE,
            fetching=fetching,
        )

    def _send(self, rider: _Rider, orders: Sequence[Order], now: float) -> None:
        """Send a free courier on a trip, or add to one whose pick-up is still to come."""
        if rider.free <= now:
            here = self._instance.restaurants[orders[0].restaurant_id]
            way = float(self._travel.seconds(np.array([rider.at]), np.array([here]))[0]) / _MINUTE
            rider.assigned, rider.left = {}, now
            rider.there = now + way + self._instance.pickup_service / 2
        rider.assigned |= {each.order_id: now for each in orders}
        carried = [self._orders[each] for each in rider.assigned]
        rider.pickup = max(rider.there, *(each.ready for each in carried))
        load = load_of([self._waiting(each, now) for each in carried], self._travel)
        doors = {
            each.delivery_id: rider.pickup + after / _MINUTE
            for each, after in zip(load.deliveries, load.doors_after, strict=True)
        }
        done = tuple(Delivered(order_id, rider.assigned[order_id], door) for order_id, door in doors.items())
        trip = Trip(rider.courier.courier_id, rider.left, rider.pickup, done)
        self._trips[trip.courier_id, trip.left] = trip
        rider.at = self._orders[done[-1].order_id].door
        rider.free = rider.pickup + load.free_after / _MINUTE


def _place(point: Point) -> Place:
    return Place(lat=point[1], lng=point[0])
