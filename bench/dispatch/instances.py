"""Reading instances of the Meal Delivery Routing Problem: four tab-separated files a folder, minutes and metres."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Point = tuple[float, float]


@dataclass(frozen=True)
class Order:
    """An order: where it goes, and the minutes at which it was placed and will be ready at its restaurant."""

    order_id: str
    door: Point
    placed: float
    restaurant_id: str
    ready: float


@dataclass(frozen=True)
class Courier:
    """A courier: where and when the shift begins, and when it ends (no pick-up after that)."""

    courier_id: str
    start: Point
    on: float
    off: float


@dataclass(frozen=True)
class Instance:
    """A day in a city. Durations in minutes."""

    name: str
    orders: Sequence[Order]
    couriers: Sequence[Courier]
    restaurants: Mapping[str, Point]
    metres_per_minute: float
    pickup_service: float
    dropoff_service: float
    target: float
    """Click-to-door that was promised."""
    maximum: float
    """Click-to-door above which an order counts as not delivered."""


def read_instance(folder: Path) -> Instance:
    """Read one instance. Raises OSError, KeyError or ValueError when the folder does not hold one."""
    parameters = _rows(folder / "instance_parameters.txt")[0]
    return Instance(
        name=folder.name,
        orders=[
            Order(row["order"], _point(row), float(row["placement_time"]), row["restaurant"], float(row["ready_time"]))
            for row in _rows(folder / "orders.txt")
        ],
        couriers=[
            Courier(row["courier"], _point(row), float(row["on_time"]), float(row["off_time"]))
            for row in _rows(folder / "couriers.txt")
        ],
        restaurants={row["restaurant"]: _point(row) for row in _rows(folder / "restaurants.txt")},
        metres_per_minute=float(parameters["meters_per_minute"]),
        pickup_service=float(parameters["pickup service minutes"]),
        dropoff_service=float(parameters["dropoff service minutes"]),
        target=float(parameters["target click-to-door"]),
        maximum=float(parameters["maximum click-to-door"]),
    )


def read_instances(folder: Path) -> list[Instance]:
    """Read every instance of a folder, or the folder itself if it is one; by name."""
    if (folder / "orders.txt").is_file():
        return [read_instance(folder)]
    return [read_instance(each) for each in sorted(folder.iterdir()) if (each / "orders.txt").is_file()]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _point(row: Mapping[str, str]) -> Point:
    return float(row["x"]), float(row["y"])
