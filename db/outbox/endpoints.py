"""Webhooks, as an admin makes, changes and ends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import CursorResult, Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import announce
from db.ops import record_action
from db.outbox.write import ENDPOINTS_LOCK, EVENTS_CHANNEL

_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
_COLUMNS = """
    endpoint_id, name, url, event_types, unordered_types, enabled,
    CASE WHEN deletion_began_at IS NULL THEN disabled_reason ELSE 'it is being deleted' END AS disabled_reason,
    open_until IS NOT NULL AS open, consecutive_failures, last_error, failing_since, created_at
"""
_GET = text(f"SELECT {_COLUMNS} FROM outbox_endpoints WHERE name = :name AND kind = 'webhook'")
_LIST = text(f"""
    SELECT {_COLUMNS} FROM outbox_endpoints WHERE kind = 'webhook'
        AND (CAST(:after AS int) IS NULL OR endpoint_id < :after)
    ORDER BY endpoint_id DESC LIMIT :limit
""")
_MAIL_SERVER = text(f"SELECT {_COLUMNS} FROM outbox_endpoints WHERE kind = 'email'")
_INSERT = text("""
    INSERT INTO outbox_endpoints (name, kind, url, event_types, unordered_types, enabled, secret)
    VALUES (:name, 'webhook', :url, CAST(:event_types AS text[]), CAST(:unordered_types AS text[]), :enabled, :secret)
""")
_UPDATE = text("""
    UPDATE outbox_endpoints SET url = :url, event_types = CAST(:event_types AS text[]),
        unordered_types = CAST(:unordered_types AS text[]), enabled = :enabled,
        lanes_stale = lanes_stale OR unordered_types <> CAST(:unordered_types AS text[])
    WHERE name = :name AND kind = 'webhook' AND deletion_began_at IS NULL
""")
_ENABLE = text("""
    UPDATE outbox_endpoints
    SET enabled = true, disabled_reason = NULL, open_until = NULL, consecutive_failures = 0, last_error = NULL,
        failing_since = NULL, reachable_since = now()
    WHERE name = :name AND kind = 'webhook' AND deletion_began_at IS NULL
""")
_ROTATE = text("""
    UPDATE outbox_endpoints SET previous_secret = secret, secret = :secret,
        previous_secret_until = now() + make_interval(hours => :hours)
    WHERE name = :name AND kind = 'webhook' AND deletion_began_at IS NULL
""")
OLD_SECRET_HOURS = 24
"""How long messages are signed with the previous secret too."""

_BEGIN_DELETION = text("""
    UPDATE outbox_endpoints SET enabled = false, deletion_began_at = now()
    WHERE name = :name AND kind = 'webhook' AND deletion_began_at IS NULL RETURNING endpoint_id, url, event_types
""")
_LOCK_DELETED = text("""
    SELECT name FROM outbox_endpoints WHERE endpoint_id = :endpoint_id AND deletion_began_at IS NOT NULL FOR UPDATE
""")
_DELETE = text("DELETE FROM outbox_endpoints WHERE endpoint_id = :endpoint_id")
_DROP_CLAIMS = text("DELETE FROM outbox_claims WHERE endpoint_id = :endpoint_id")
_DROP_BATCH = 5000
_TABLES_OF_MESSAGES = ("outbox_messages", "outbox_parked", "outbox_failures")
_DROP = {
    table: text(f"""
        DELETE FROM {table} WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {table} WHERE endpoint_id = :endpoint_id LIMIT :limit))
    """)
    for table in _TABLES_OF_MESSAGES
}


class BeingDeleted(Exception):
    """The webhook is being deleted: nothing else can become of it."""


async def get_webhook(connection: AsyncConnection, name: str) -> Row[Any] | None:
    """A webhook, its secret left out."""
    return (await connection.execute(_GET, {"name": name})).one_or_none()


async def list_webhooks(connection: AsyncConnection, after: int | None, limit: int) -> Sequence[Row[Any]]:
    """A page of webhooks, newest first."""
    return (await connection.execute(_LIST, {"after": after, "limit": limit})).all()


async def get_mail_server(connection: AsyncConnection) -> Row[Any]:
    """The one endpoint of all e-mails, as a webhook is answered."""
    return (await connection.execute(_MAIL_SERVER)).one()


@dataclass(frozen=True)
class WebhookWish:
    """What an admin wants a webhook to be."""

    url: str
    event_types: list[str] | None = None
    """None: all."""
    unordered_types: list[str] = field(default_factory=list)
    """Events of these types wait for no other, and no other waits for them."""
    enabled: bool = True


async def put_webhook(
    connection: AsyncConnection, name: str, wish: WebhookWish, secret: str, *, actor: str, reason: str | None
) -> bool:
    """Make or change a webhook; answer whether it was made, and with `secret`.

    Which events need no order holds for what comes after; what waits already is moved then (`lanes`). Raises
    BeingDeleted.
    """
    await connection.execute(_LOCK, {"key": ENDPOINTS_LOCK})
    found = await get_webhook(connection, name)
    wished = {"name": name, **asdict(wish)}
    announce(connection, EVENTS_CHANNEL)
    if found is None:
        await connection.execute(_INSERT, {**wished, "secret": secret})
    else:
        _must_have_changed(await connection.execute(_UPDATE, wished))
    before = _audited(found) if found else None
    put = await get_webhook(connection, name)
    assert put is not None
    after = _audited(put)
    await record_action(connection, actor, "webhook.put", f"webhook:{name}", reason, before=before, after=after)
    return found is None


def _audited(row: Row[Any]) -> dict[str, Any]:
    """What a webhook is to an admin: one that was disabled is not enabled, whatever was wished."""
    return {
        "url": row.url,
        "event_types": row.event_types,
        "unordered_event_types": row.unordered_types,
        "enabled": row.enabled and row.disabled_reason is None,
    }


def _must_have_changed(result: CursorResult[Any]) -> None:
    if result.rowcount == 0:
        raise BeingDeleted


async def begin_deletion(connection: AsyncConnection, name: str, *, actor: str, reason: str | None) -> int | None:
    """End a webhook: nothing more is sent to it. Answer its endpoint's id, also where that had been decided before."""
    announce(connection, EVENTS_CHANNEL)
    ended = (await connection.execute(_BEGIN_DELETION, {"name": name})).one_or_none()
    if ended is None:
        found = await get_webhook(connection, name)
        return found.endpoint_id if found else None
    before = {"url": ended.url, "event_types": ended.event_types}
    await record_action(connection, actor, "webhook.delete", f"webhook:{name}", reason, before=before, after=None)
    return int(ended.endpoint_id)


async def drop_messages(connection: AsyncConnection, endpoint_id: int) -> int:
    """Drop a batch of what the endpoint had not received; answer how many, 0 when nothing is left."""
    for table in _TABLES_OF_MESSAGES:
        parameters = {"endpoint_id": endpoint_id, "limit": _DROP_BATCH}
        if dropped := (await connection.execute(_DROP[table], parameters)).rowcount:
            return dropped
    return 0


async def end_deletion(
    connection: AsyncConnection, endpoint_id: int, dropped: int, *, actor: str, reason: str | None
) -> bool:
    """Forget an ended webhook, and what came for it meanwhile; answer whether it was still there."""
    await connection.execute(_LOCK, {"key": ENDPOINTS_LOCK})
    name = await connection.scalar(_LOCK_DELETED, {"endpoint_id": endpoint_id})
    if name is None:
        return False
    while more := await drop_messages(connection, endpoint_id):
        dropped += more
    await connection.execute(_DROP_CLAIMS, {"endpoint_id": endpoint_id})
    await connection.execute(_DELETE, {"endpoint_id": endpoint_id})
    after = {"dropped": dropped}
    await record_action(connection, actor, "webhook.deleted", f"webhook:{name}", reason, before=None, after=after)
    return True


async def rotate_secret(connection: AsyncConnection, name: str, secret: str, *, actor: str, reason: str | None) -> bool:
    """Sign with a new secret, for a day with the old one too; answer whether there is such a webhook.

    Raises BeingDeleted.
    """
    if await get_webhook(connection, name) is None:
        return False
    announce(connection, EVENTS_CHANNEL)
    parameters = {"name": name, "secret": secret, "hours": OLD_SECRET_HOURS}
    _must_have_changed(await connection.execute(_ROTATE, parameters))
    await record_action(connection, actor, "webhook.rotate_secret", f"webhook:{name}", reason, before=None, after=None)
    return True


async def enable_webhook(connection: AsyncConnection, name: str, *, actor: str, reason: str | None) -> bool:
    """Send to a webhook again, at once, whatever stopped it; answer whether there is such a webhook.

    Raises BeingDeleted.
    """
    found = await get_webhook(connection, name)
    if found is None:
        return False
    announce(connection, EVENTS_CHANNEL)
    _must_have_changed(await connection.execute(_ENABLE, {"name": name}))
    before = {"enabled": _audited(found)["enabled"], "open": found.open}
    after = {"enabled": True, "open": False}
    await record_action(connection, actor, "webhook.enable", f"webhook:{name}", reason, before=before, after=after)
    return True
