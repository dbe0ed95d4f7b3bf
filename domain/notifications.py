"""What customers are told by e-mail: of which events, in which words, under which Message-ID."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.errors import MessageError
from email.headerregistry import Address
from enum import StrEnum

from domain.order import Line
from domain.outbox import Event, EventType


class Channel(StrEnum):
    """How a customer is told; a notification is unique per event, channel and recipient."""

    EMAIL = "email"


_WORDS: Mapping[EventType, tuple[str, str]] = {
    EventType.ORDER_CONFIRMED: (
        "Your order is confirmed",
        "Thank you: your order is confirmed. We are looking for a courier to bring it to you.",
    ),
    EventType.DELIVERY_LATE: (
        "Your order is late",
        "We are sorry: your order takes longer than we promised. It is still on its way to you.",
    ),
    EventType.ORDER_DELIVERED: ("Your order was delivered", "Your order was delivered. We hope that you like it."),
    EventType.ORDER_EXPIRED: (
        "Your order has expired",
        "We kept these goods for you, but the order was not confirmed in time. It has ended, and nothing will be"
        " delivered. You are welcome to order again.",
    ),
    EventType.ORDER_CANCELLED: ("Your order was cancelled", "Your order was cancelled. Nothing will be delivered."),
}


def wanted_by_email(event: Event) -> bool:
    """Whether the customer is told of the event, where the order has an e-mail address."""
    return event.event_type in _WORDS


@dataclass(frozen=True)
class Notification:
    """One event for one recipient, on one channel."""

    event_id: str
    occurred_at: datetime
    recipient: str
    subject: str
    body: str


def notification(
    event_id: str, event_type: str, occurred_at: datetime, order_id: str, lines: Iterable[Line], recipient: str
) -> Notification:
    """Put an event into plain words; the same event gives the same ones. Raises LookupError where nobody is told."""
    if event_type not in _WORDS:
        raise LookupError(event_type)
    subject, words = _WORDS[EventType(event_type)]
    ordered = [f"  {line.quantity} x {_printable(line.sku)}" for line in lines]
    foot = "This message was sent automatically. Please do not reply to it."
    body = "\n".join([words, "", f"Order {order_id}", *ordered, "", foot, ""])
    return Notification(event_id, occurred_at, recipient, f"{subject} ({order_id})", body)


def _printable(text: str) -> str:
    """What somebody else wrote, kept within its line."""
    return "".join(character if character.isprintable() else " " for character in text)


def notification_key(event_id: str, recipient: str) -> str:
    """What stands for this event and recipient, and for no others, and shows neither: 128 bits in hexadecimal."""
    return hashlib.sha256(f"{event_id}\n{recipient}".encode()).hexdigest()[:32]


def mail_address(text: str) -> Address:
    """One plain address, as it can stand in a mail's header. Raises ValueError."""
    try:
        address = Address(addr_spec=text)
    except (ValueError, LookupError, MessageError) as error:
        raise ValueError("not an address that mail can be sent to") from error
    if address.addr_spec != text:
        raise ValueError("not one plain address")
    return address
