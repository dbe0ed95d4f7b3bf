"""The stages of a delivery, who assigns it, and what an attempt to assign can lose to."""

from __future__ import annotations

from enum import StrEnum


class DeliveryStatus(StrEnum):
    """PENDING → OFFERED → ASSIGNED → PICKED_UP → DELIVERED is the healthy way."""

    PENDING = "PENDING"
    OFFERED = "OFFERED"
    ASSIGNED = "ASSIGNED"
    PICKED_UP = "PICKED_UP"
    DELIVERED = "DELIVERED"
    CANCELLED = "CANCELLED"
    NEEDS_ATTENTION = "NEEDS_ATTENTION"


class AssignmentSource(StrEnum):
    """Who assigns; or, where they lose a race, the courier who acts."""

    AUTO = "auto"
    MANUAL = "manual"
    ROUTE = "route"
    COURIER = "courier"


class ConflictKind(StrEnum):
    """What an attempt lost to. A repeated attempt that finds its own success is no conflict."""

    DELIVERY_TAKEN = "delivery_taken"
    CAPACITY = "capacity"
    COURIER_UNAVAILABLE = "courier_unavailable"
    LATE_ACCEPT = "late_accept"


class CourierAction(StrEnum):
    """What a courier does with a delivery."""

    ACCEPT = "accept"
    DECLINE = "decline"
    PICKUP = "pickup"
    COMPLETE = "complete"


class ZoneMode(StrEnum):
    """Whether rounds assign, or only people do."""

    AUTO = "auto"
    MANUAL = "manual"


def taken_by_nobody(status: str) -> bool:
    """Whether a delivery in this state can be given to a courier."""
    return status in (DeliveryStatus.PENDING, DeliveryStatus.NEEDS_ATTENTION)
