"""What customers are told: whether e-mail is on, and each notification from its first attempt to its settling."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.outbox.write import ENDPOINTS_LOCK
from domain.notifications import Channel
from domain.order import Line

_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
_IS_SO = text("SELECT enabled = :on AND disabled_reason IS NULL FROM outbox_endpoints WHERE kind = 'email'")
_SWITCH = text("""
    UPDATE outbox_endpoints SET enabled = :on, disabled_reason = NULL, open_until = NULL, consecutive_failures = 0,
        last_error = NULL, failing_since = NULL, reachable_since = now()
    WHERE kind = 'email'
""")


async def switch_email(connection: AsyncConnection, *, on: bool) -> None:
    """Write e-mails from now on, or none; those that wait already go when it is on again.

    Whatever stopped a mail server is forgotten: whoever starts workers has seen to it.
    """
    if await connection.scalar(_IS_SO, {"on": on}):
        return  # every other start of a worker: nobody who writes an event has to wait for it
    await connection.execute(_LOCK, {"key": ENDPOINTS_LOCK})
    await connection.execute(_SWITCH, {"on": on})


@dataclass(frozen=True)
class Addressee:
    """Whom an order's e-mails go to, and what was ordered."""

    email: str
    lines: list[Line]


_ADDRESSEE = text("SELECT email, lines FROM orders WHERE order_id = :order_id AND email IS NOT NULL")


async def addressee(connection: AsyncConnection, order_id: str) -> Addressee | None:
    """None: the order has no e-mail address."""
    row = (await connection.execute(_ADDRESSEE, {"order_id": order_id})).one_or_none()
    return Addressee(row.email, [Line(**line) for line in row.lines]) if row else None


@dataclass(frozen=True)
class Begun:
    """An attempt to notify somebody."""

    event_id: str
    channel: Channel
    recipient: str
    message_id: str
    """The same in every attempt."""
    began_at: datetime


# Waits for whoever records the end of an attempt at this moment, and then finds it settled.
_BEGIN = text("""
    INSERT INTO notifications AS n (event_id, channel, recipient, message_id)
    VALUES (CAST(:event_id AS uuid), :channel, :recipient, :message_id)
    ON CONFLICT (event_id, channel, recipient) DO UPDATE SET attempts = n.attempts + 1 WHERE n.sent_at IS NULL
    RETURNING message_id, clock_timestamp() AS began_at
""")


async def begin(
    connection: AsyncConnection, event_id: str, channel: Channel, recipient: str, message_id: str
) -> Begun | None:
    """Count an attempt before it is made. None: the notification is settled, and is never sent again."""
    key = {"event_id": event_id, "channel": channel, "recipient": recipient}
    row = (await connection.execute(_BEGIN, {**key, "message_id": message_id})).one_or_none()
    return Begun(event_id, channel, recipient, row.message_id, row.began_at) if row else None


_SETTLE = text("""
    UPDATE notifications SET sent_at = COALESCE(sent_at, clock_timestamp()),
        sent_again = sent_again + CAST(COALESCE(sent_at < :began_at, false) AS int)
    WHERE event_id = CAST(:event_id AS uuid) AND channel = :channel AND recipient = :recipient
""")


async def settle(connection: AsyncConnection, begun: Begun) -> None:
    """The attempt completed. One that began when it was settled already is counted: a promise was broken."""
    await connection.execute(
        _SETTLE,
        {
            "event_id": begun.event_id,
            "channel": begun.channel,
            "recipient": begun.recipient,
            "began_at": begun.began_at,
        },
    )
