"""A strict check of a day: what was done, step by step, against the rules and nothing but the instance's files.

It shares no code with the simulator or the policy, and takes no time on trust that can be worked out. Rules: Reyes,
Erera, Savelsbergh, Sahasrabudhe and O'Neil (2018), as the instances' own description states them, plus two that the
published evaluator leaves out: the maximum click-to-door, and the half of the service time that lies before a pick-up
or a drop-off.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.dispatch.instances import Instance, Order, Point


@dataclass(frozen=True)
class Delivered:
    """One order of a trip, in minutes: when the courier was told, and when it was at the door."""

    order_id: str
    assigned: float
    door: float


@dataclass(frozen=True)
class Trip:
    """One way to a restaurant and from there to the doors, in their order. Minutes."""

    courier_id: str
    left: float
    """When the courier set out for the restaurant, having been told to."""
    pickup: float
    orders: tuple[Delivered, ...]


def check(instance: Instance, trips: Sequence[Trip]) -> list[str]:
    """Every rule that was broken, in words; empty if none was. An order that no trip carries is for the score."""
    broken = list(_known(instance, trips))
    if broken:
        return broken
    times = Counter(each.order_id for trip in trips for each in trip.orders)
    broken += [f"{order}: delivered {count} times" for order, count in times.items() if count > 1]
    orders = {each.order_id: each for each in instance.orders}
    for courier in instance.couriers:
        here, free = courier.start, courier.on
        for trip in sorted(
            (each for each in trips if each.courier_id == courier.courier_id), key=lambda each: each.left
        ):
            if trip.left < free:
                broken.append(f"{courier.courier_id}: sets out at {trip.left:g}, before being free at {free:g}")
            if trip.pickup > courier.off:
                broken.append(
                    f"{courier.courier_id}: picks up at {trip.pickup:g}, after the shift's end at {courier.off:g}"
                )
            broken += _trip(instance, trip, [orders[each.order_id] for each in trip.orders], here)
            here = orders[trip.orders[-1].order_id].door
            free = trip.orders[-1].door + instance.dropoff_service / 2
    return broken


def _known(instance: Instance, trips: Iterable[Trip]) -> Iterable[str]:
    orders, couriers = {each.order_id for each in instance.orders}, {each.courier_id for each in instance.couriers}
    for trip in trips:
        if trip.courier_id not in couriers:
            yield f"{trip.courier_id}: no such courier"
        if not trip.orders:
            yield f"{trip.courier_id}: a trip for nothing at {trip.left:g}"
        yield from (f"{each.order_id}: no such order" for each in trip.orders if each.order_id not in orders)


def _trip(instance: Instance, trip: Trip, orders: Sequence[Order], start: Point) -> Iterable[str]:
    """One trip's timetable, worked out from where the courier stood."""
    restaurants = {each.restaurant_id for each in orders}
    if len(restaurants) > 1:
        yield f"{trip.courier_id}: fetches {', '.join(sorted(restaurants))} in one trip"
    here = instance.restaurants[orders[0].restaurant_id]
    arrival = trip.left + _minutes(instance, start, here)
    if trip.pickup < arrival + instance.pickup_service / 2:
        yield f"{trip.courier_id}: picks up at {trip.pickup:g}, having arrived at {arrival:g}"
    if not any(each.assigned <= trip.left for each in trip.orders):
        yield f"{trip.courier_id}: sets out at {trip.left:g}, told by nobody"
    leaves = trip.pickup + instance.pickup_service / 2
    for order, done in zip(orders, trip.orders, strict=True):
        if done.assigned < order.placed:
            yield f"{order.order_id}: assigned at {done.assigned:g}, placed at {order.placed:g}"
        if done.assigned > trip.pickup:
            yield f"{order.order_id}: assigned at {done.assigned:g}, after the pick-up at {trip.pickup:g}"
        if trip.pickup < order.ready:
            yield f"{order.order_id}: picked up at {trip.pickup:g}, ready at {order.ready:g}"
        earliest = leaves + _minutes(instance, here, order.door) + instance.dropoff_service / 2
        if done.door < earliest:
            yield f"{order.order_id}: at the door at {done.door:g}, possible from {earliest:g}"
        if done.door - order.placed > instance.maximum:
            yield f"{order.order_id}: {done.door - order.placed:g} minutes from click to door"
        here, leaves = order.door, done.door + instance.dropoff_service / 2


def _minutes(instance: Instance, start: Point, end: Point) -> int:
    return math.ceil(math.dist(start, end) / instance.metres_per_minute)


def deliverable(instance: Instance, order: Order) -> bool:
    """Whether anybody could have brought it within the maximum, had they stood at the restaurant already."""
    way = _minutes(instance, instance.restaurants[order.restaurant_id], order.door)
    latest = order.placed + instance.maximum - instance.pickup_service / 2 - way - instance.dropoff_service / 2
    earliest = (max(order.ready, each.on + instance.pickup_service / 2, order.placed) for each in instance.couriers)
    return any(start <= min(each.off, latest) for start, each in zip(earliest, instance.couriers, strict=True))
