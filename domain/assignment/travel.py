"""How long the way is: travel models for the dispatch policy.

A model first lays places out as points, so that distances are straight lines between them: whole cost tables are then
computed by numpy, and the nearest couriers are found by a k-d tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from domain.order import Place

Floats = NDArray[np.float64]

METRES_PER_SECOND = 5.0
"""A bicycle in a city."""
_EARTH_RADIUS_METRES = 6_371_000.0


class TravelModel(Protocol):
    """What coordinates mean, how fast couriers are, and how long they stop."""

    @property
    def pickup_seconds(self) -> float:
        """From arriving at a pick-up to having the goods; as much again until leaving."""

    @property
    def dropoff_seconds(self) -> float:
        """From arriving at a door to having handed over; as much again until leaving."""

    def points(self, places: Sequence[Place]) -> Floats:
        """One row a place: coordinates in which the nearest in a straight line is the nearest to travel to."""

    def seconds(self, starts: Floats, ends: Floats) -> Floats:
        """Travel between arrays of points (coordinates along the last axis; the others broadcast)."""


@dataclass(frozen=True)
class GreatCircle:
    """Degrees of latitude and longitude, and a constant speed along the great circle. Stops take no time."""

    metres_per_second: float = METRES_PER_SECOND
    pickup_seconds: float = 0.0
    dropoff_seconds: float = 0.0

    def points(self, places: Sequence[Place]) -> Floats:
        """Points in space, in metres from the centre of the earth."""
        degrees = np.array([(place.lat, place.lng) for place in places], dtype=np.float64).reshape(-1, 2)
        lat, lng = np.radians(degrees).T
        return _EARTH_RADIUS_METRES * np.stack(
            [np.cos(lat) * np.cos(lng), np.cos(lat) * np.sin(lng), np.sin(lat)], axis=-1
        )

    def seconds(self, starts: Floats, ends: Floats) -> Floats:
        """The arc over the straight line (chord) between two points."""
        half_chord = distance(starts, ends)
        half_chord /= 2 * _EARTH_RADIUS_METRES
        np.minimum(half_chord, 1.0, out=half_chord)
        arc: Floats = np.arcsin(half_chord, out=half_chord)
        arc *= 2 * _EARTH_RADIUS_METRES / self.metres_per_second
        return arc


def distance(starts: Floats, ends: Floats) -> Any:
    """Straight-line distance; axis by axis, so that nothing larger than the answer is held."""
    squares: Any = np.square(starts[..., 0] - ends[..., 0])
    for axis in range(1, starts.shape[-1]):
        squares += np.square(starts[..., axis] - ends[..., axis])
    return np.sqrt(squares)
