"""The benchmark's day and its checker, on a city made up here."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.dispatch.checker import Delivered, Trip, check, deliverable
from bench.dispatch.instances import Courier, Instance, Order, read_instance
from bench.dispatch.simulator import Simulator

SERVICE = 4.0


def city(*orders: Order, couriers: tuple[Courier, ...] = ()) -> Instance:
    return Instance(
        name="made-up",
        orders=orders,
        couriers=couriers or (Courier("ada", (0, 0), 0, 300), Courier("bob", (900, 0), 0, 300)),
        restaurants={"inn": (100, 0), "bar": (1000, 0)},
        metres_per_minute=100,
        pickup_service=SERVICE,
        dropoff_service=SERVICE,
        target=40,
        maximum=90,
    )


# Ada needs 1 minute to the inn and 2 to park: the pick-up is possible from 3, but the soup is ready at 10. From there 2
# minutes back to her bicycle, 3 of way (250 metres, rounded up), 2 to the door; then 2 + 1 + 2 to the next one.
SOUP = Order("soup", (350, 0), 0, "inn", 10)
STEW = Order("stew", (450, 0), 5, "inn", 8)
BEER = Order("beer", (1000, 100), 5, "bar", 8)
CITY = city(SOUP, STEW, BEER)
HONEST = (
    Trip("ada", 7, 10, (Delivered("soup", 7, 17), Delivered("stew", 8, 22))),
    Trip("bob", 5, 8, (Delivered("beer", 5, 13),)),
)


def changed(trip: int, **fields: object) -> tuple[Trip, ...]:
    return tuple(replace(each, **fields) if index == trip else each for index, each in enumerate(HONEST))  # type: ignore[arg-type]


def done(order_id: str = "beer", assigned: float = 5, door: float = 13) -> tuple[Delivered, ...]:
    return (Delivered(order_id, assigned, door),)


CHEATS: dict[str, tuple[Instance, tuple[Trip, ...], str]] = {
    "assigned before it was placed": (CITY, changed(1, left=4, pickup=8, orders=done(assigned=4)), "placed"),
    "set out before being told": (CITY, changed(1, orders=done(assigned=6)), "told by nobody"),
    "joined after the pick-up": (
        CITY,
        changed(0, orders=(HONEST[0].orders[0], Delivered("stew", 11, 22))),
        "after the pick-up",
    ),
    "picked up before it was ready": (CITY, changed(1, pickup=7.5), "ready at 8"),
    "picked up without the two minutes": (CITY, changed(1, left=5.5), "having arrived"),
    "picked up after the shift": (
        city(SOUP, STEW, BEER, couriers=(CITY.couriers[0], Courier("bob", (900, 0), 0, 7))),
        HONEST,
        "shift",
    ),
    "rode before the shift": (
        city(SOUP, STEW, BEER, couriers=(CITY.couriers[0], Courier("bob", (900, 0), 6, 300))),
        HONEST,
        "before being free",
    ),
    "rode before the last trip was done": (
        CITY,
        (HONEST[0], Trip("ada", 23, 60, done(assigned=5, door=66))),
        "before being free",
    ),
    "at the door sooner than the way takes": (CITY, changed(1, orders=done(door=12)), "possible from 13"),
    "way rounded down": (CITY, changed(0, orders=(Delivered("soup", 7, 16), Delivered("stew", 8, 22))), "possible"),
    "second door without the service": (
        CITY,
        changed(0, orders=(Delivered("soup", 7, 17), Delivered("stew", 8, 20))),
        "possible from 22",
    ),
    "later than the maximum": (CITY, changed(1, orders=done(door=96)), "91 minutes"),
    "two restaurants in one trip": (
        CITY,
        (Trip("ada", 7, 10, (Delivered("soup", 7, 17), Delivered("beer", 7, 60))),),
        "one trip",
    ),
    "delivered twice": (CITY, (*HONEST, Trip("bob", 20, 23, done(door=28))), "2 times"),
    "an order that nobody placed": (CITY, changed(1, orders=done("wine")), "no such order"),
    "a courier who is none": (CITY, changed(1, courier_id="eve"), "no such courier"),
    "a trip for nothing": (CITY, changed(1, orders=()), "for nothing"),
}


def test_an_honest_day_breaks_no_rule() -> None:
    assert check(CITY, HONEST) == []


@pytest.mark.parametrize("cheat", CHEATS)
def test_the_checker_sees_through(cheat: str) -> None:
    instance, trips, words = CHEATS[cheat]
    assert any(words in breach for breach in check(instance, trips)), check(instance, trips)


def busy(seed: int, orders: int = 60) -> Instance:
    """An evening with more orders than the couriers can take one by one."""
    rolls = random.Random(seed)
    placed = sorted(float(rolls.randrange(120)) for _ in range(orders))
    return city(
        *(
            Order(
                f"o{n}",
                (rolls.randrange(1500), rolls.randrange(1500)),
                at,
                rolls.choice(["inn", "bar"]),
                at + rolls.randrange(25),
            )
            for n, at in enumerate(placed)
        ),
        couriers=tuple(
            Courier(f"c{n}", (rolls.randrange(1500), rolls.randrange(1500)), 60.0 * (n % 2), 240.0) for n in range(9)
        ),
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_busy_day_is_delivered_by_the_rules_and_comes_out_the_same_every_time(seed: int) -> None:
    instance = busy(seed)
    trips = Simulator(instance).run()
    assert check(instance, trips) == []
    assert sum(len(trip.orders) for trip in trips) == len(instance.orders)
    assert any(len(trip.orders) > 1 for trip in trips)
    assert trips == Simulator(instance).run()


def test_a_day_does_not_know_the_future() -> None:
    instance = busy(4)
    early = replace(instance, orders=[each for each in instance.orders if each.placed <= 60])

    def told_before(trips: list[Trip]) -> set[tuple[str, str, float]]:
        return {
            (trip.courier_id, each.order_id, each.assigned)
            for trip in trips
            for each in trip.orders
            if each.assigned < 60
        }

    assert told_before(Simulator(early).run()) == told_before(Simulator(instance).run())


def test_orders_that_nobody_could_bring_in_time_are_known() -> None:
    slow = Order("slow", (350, 0), 0, "inn", 85)
    night = Order("night", (350, 0), 320, "inn", 325)
    instance = city(SOUP, slow, night)
    assert [deliverable(instance, each) for each in instance.orders] == [True, False, False]
    assert {each.order_id for trip in Simulator(instance).run() for each in trip.orders} == {"soup"}


def write(instance: Instance, folder: Path) -> None:
    """As the public files are written: tabs, minutes, metres."""
    row: Callable[..., str] = lambda *fields: "\t".join(str(each) for each in fields) + "\n"  # noqa: E731
    folder.mkdir(parents=True)
    parameters = ("meters_per_minute", "pickup service minutes", "dropoff service minutes", "target click-to-door")
    values = (instance.metres_per_minute, instance.pickup_service, instance.dropoff_service, instance.target)
    (folder / "instance_parameters.txt").write_text(
        row(*parameters, "maximum click-to-door") + row(*values, instance.maximum)
    )
    (folder / "orders.txt").write_text(
        row("order", "x", "y", "placement_time", "restaurant", "ready_time")
        + "".join(row(o.order_id, *o.door, int(o.placed), o.restaurant_id, int(o.ready)) for o in instance.orders)
    )
    (folder / "couriers.txt").write_text(
        row("courier", "x", "y", "on_time", "off_time")
        + "".join(row(c.courier_id, *c.start, int(c.on), int(c.off)) for c in instance.couriers)
    )
    (folder / "restaurants.txt").write_text(
        row("restaurant", "x", "y") + "".join(row(name, *at) for name, at in instance.restaurants.items())
    )


def test_the_command_prints_each_instance_beside_the_published_figures(tmp_path: Path) -> None:
    folder = tmp_path / "instances" / "made-up"
    write(CITY, folder)
    assert replace(read_instance(folder), orders=CITY.orders, couriers=CITY.couriers) == CITY
    (tmp_path / "reference.csv").write_text("instance,reyes_online_ctd,clairvoyant_ctd_bundle2\nmade-up,31.5,29.25\n")
    ran = subprocess.run(
        [sys.executable, "-m", "bench.dispatch", str(tmp_path / "instances")],
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in ran.stdout.splitlines() if line.startswith("made-up "))
    assert line.split()[1:6] == ["3/3", "0", line.split()[3], "31.5", "29.25"]
