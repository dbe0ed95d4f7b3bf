"""An order: what a client asks for, the stages it passes and what may be done at each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class OrderStatus(StrEnum):
    """The order's stage. RESERVED → CONFIRMED → DELIVERED is the healthy way; the others are ends."""

    RESERVED = "RESERVED"
    CONFIRMED = "CONFIRMED"
    DELIVERED = "DELIVERED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"

    @property
    def open(self) -> bool:
        """Whether something can still happen to the order, so that a workflow must be looking after it."""
        return self in (OrderStatus.RESERVED, OrderStatus.CONFIRMED)


class OrderCommand(StrEnum):
    """What a client may ask of an order that was reserved."""

    CONFIRM = "confirm"
    EXTEND = "extend"
    CANCEL = "cancel"


class Refusal(StrEnum):
    """Why a command is refused: the slug of the problem the client reads."""

    HOLD_EXPIRED = "hold-expired"
    ORDER_CANCELLED = "order-cancelled"
    ORDER_REJECTED = "order-rejected"
    ORDER_CONFIRMED = "order-confirmed"
    ALREADY_PICKED_UP = "already-picked-up"


@dataclass(frozen=True)
class Line:
    """So many of one product."""

    sku: str
    quantity: int


@dataclass(frozen=True)
class Place:
    """A point on the earth, in degrees (WGS 84)."""

    lat: float
    lng: float


@dataclass(frozen=True)
class Shortage:
    """A product of which there was less than an order asked for."""

    sku: str
    requested: int
    available: int


@dataclass(frozen=True)
class NewOrder:
    """An accepted request for an order: what `OrderWorkflow` starts from, and what its row can be made from again."""

    order_id: str
    request_hash: str
    """Of the request's body: the same key with another body is a mistake of the caller's."""
    customer_id: str
    zone: str
    lines: list[Line]
    dropoff: Place
    hold_seconds: int
    pickup: Place | None = None
    dropoff_address: str | None = None
    email: str | None = None

    @property
    def summary(self) -> str:
        """One line for the Temporal UI; nothing personal."""
        count = len(self.lines)
        return f"{count} line{'s' if count > 1 else ''} to zone {self.zone}"


@dataclass(frozen=True)
class OrderState:
    """What an order's row says after a transaction; workflows adopt it."""

    stage: OrderStatus
    seconds_left: float | None = None
    """By the database's clock, 0 or less when it has passed. RESERVED: until the hold's deadline. CONFIRMED: until the
    promised time of delivery, None once it is marked late."""
    refusal: Refusal | None = None
    """Set when the command was not carried out."""
    shortages: list[Shortage] = field(default_factory=list)
    """REJECTED: the products that were short."""


def quantities(lines: Iterable[Line]) -> dict[str, int]:
    """Sum the lines per product, sorted by SKU.

    Two lines of one SKU are one demand: checked apart, each would see the whole stock (vendure#1028). The sorted order
    is the order in which products are locked.
    """
    total: Counter[str] = Counter()
    for line in lines:
        total[line.sku] += line.quantity
    return dict(sorted(total.items()))


_REFUSALS: dict[OrderStatus, Refusal] = {
    OrderStatus.EXPIRED: Refusal.HOLD_EXPIRED,
    OrderStatus.CANCELLED: Refusal.ORDER_CANCELLED,
    OrderStatus.REJECTED: Refusal.ORDER_REJECTED,
    OrderStatus.CONFIRMED: Refusal.ORDER_CONFIRMED,
    OrderStatus.DELIVERED: Refusal.ALREADY_PICKED_UP,
}

_ALREADY_DONE: set[tuple[OrderCommand, OrderStatus]] = {
    (OrderCommand.CONFIRM, OrderStatus.CONFIRMED),
    (OrderCommand.CONFIRM, OrderStatus.DELIVERED),
    (OrderCommand.CANCEL, OrderStatus.CANCELLED),
}

_POSSIBLE: set[tuple[OrderCommand, OrderStatus]] = {
    (OrderCommand.CONFIRM, OrderStatus.RESERVED),
    (OrderCommand.EXTEND, OrderStatus.RESERVED),
    (OrderCommand.CANCEL, OrderStatus.RESERVED),
    (OrderCommand.CANCEL, OrderStatus.CONFIRMED),
}


def possible(command: OrderCommand, stage: OrderStatus) -> bool:
    """Whether the command changes an order at this stage."""
    return (command, stage) in _POSSIBLE


def refusal(command: OrderCommand, stage: OrderStatus) -> Refusal | None:
    """Why a command that changes nothing at this stage is refused; None where it was already done or is possible."""
    if (command, stage) in _ALREADY_DONE or possible(command, stage):
        return None
    return _REFUSALS[stage]
