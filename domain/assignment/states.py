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
    """What an answered attempt lost to."""

    DELIVERY_TAKEN = "delivery_taken"
    """Another assigner gave it to somebody; or, where a courier acts, it is with another one."""
    CAPACITY = "capacity"
    COURIER_UNAVAILABLE = "courier_unavailable"
    STALE_ROUND = "stale_round"
    """What a round had seen is no longer so, and no other assigner has the delivery: another round gave it, it needs
    attention, or its courier was asked for it meanwhile or went to another zone."""
    LATE_ACCEPT = "late_accept"
    """The offer was over when the courier accepted it."""
    LOCK_TIMEOUT = "lock_timeout"
    """Somebody else's change of the delivery or the courier took too long to wait for."""


class NoConflict(StrEnum):
    """Attempts that came to nothing and lost to nobody: counted apart from the conflicts."""

    REPLAY = "replay"
    """What was asked for was done before."""
    DUPLICATE = "duplicate"
    """The same delivery twice in one request, or a loser's asking again: the first one counts."""
    SUPERSEDED = "superseded"
    """A client cancelled the order meanwhile."""


class Attention(StrEnum):
    """Why a delivery needs a person."""

    MAX_OFFERS = "max_offers"
    """As many couriers as the zone allows were asked in vain."""
    COURIER_OFFLINE = "courier_offline"
    """It was picked up, and its courier went offline with it."""


class AssignmentOutcome(StrEnum):
    """How an assignment, or an offer, ended."""

    DELIVERED = "delivered"
    DECLINED = "declined"
    EXPIRED = "expired"
    OFFLINE = "offline"
    CANCELLED = "cancelled"
    TAKEN_OVER = "taken_over"


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


def with_a_courier(status: str) -> bool:
    """Whether a delivery in this state is, or was to the end, on a courier's hands."""
    return status in _WITH_A_COURIER


_WITH_A_COURIER = frozenset(
    {DeliveryStatus.OFFERED, DeliveryStatus.ASSIGNED, DeliveryStatus.PICKED_UP, DeliveryStatus.DELIVERED}
)
