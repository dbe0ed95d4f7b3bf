"""Deliveries: the stages from the confirmed order to the door."""

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
