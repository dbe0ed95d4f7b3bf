"""Webhooks, as an admin makes, changes and ends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.ops import record_action
from db.outbox.write import ENDPOINTS_LOCK

_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
_COLUMNS = """
    endpoint_id, name, url, event_types, enabled, open_until IS NOT NULL AS open, consecutive_failures, last_error,
    created_at
"""
_GET = text(f"SELECT {_COLUMNS} FROM outbox_endpoints WHERE name = :name AND kind = 'webhook'")
_LIST = text(f"""
    SELECT {_COLUMNS} FROM outbox_endpoints WHERE kind = 'webhook'
        AND (CAST(:after AS int) IS NULL OR endpoint_id < :after)
    ORDER BY endpoint_id DESC LIMIT :limit
""")
_INSERT = text("""
    INSERT INTO outbox_endpoints (name, kind, url, event_types, enabled, secret)
    VALUES (:name, 'webhook', :url, CAST(:event_types AS text[]), :enabled, :secret)
""")
_UPDATE = text("""
    UPDATE outbox_endpoints SET url = :url, event_types = CAST(:event_types AS text[]), enabled = :enabled
    WHERE name = :name AND kind = 'webhook'
""")
_ENABLE = text("""
    UPDATE outbox_endpoints
    SET enabled = true, open_until = NULL, consecutive_failures = 0, last_error = NULL, reachable_since = now()
    WHERE name = :name AND kind = 'webhook'
""")
_ROTATE = text("""
    UPDATE outbox_endpoints SET previous_secret = secret, secret = :secret,
        previous_secret_until = now() + make_interval(hours => :hours)
    WHERE name = :name AND kind = 'webhook'
""")
OLD_SECRET_HOURS = 24
"""How long messages are signed with the previous secret too."""

_DISABLE = text("""
    UPDATE outbox_endpoints SET enabled = false WHERE name = :name AND kind = 'webhook' RETURNING endpoint_id
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


async def get_webhook(connection: AsyncConnection, name: str) -> Row[Any] | None:
    """A webhook, its secret left out."""
    return (await connection.execute(_GET, {"name": name})).one_or_none()


async def list_webhooks(connection: AsyncConnection, after: int | None, limit: int) -> Sequence[Row[Any]]:
    """A page of webhooks, newest first."""
    return (await connection.execute(_LIST, {"after": after, "limit": limit})).all()


async def put_webhook(
    connection: AsyncConnection,
    name: str,
    url: str,
    event_types: Sequence[str] | None,
    enabled: bool,
    secret: str,
    *,
    actor: str,
    reason: str | None,
) -> bool:
    """Make or change a webhook; answer whether it was made, and with `secret`."""
    await connection.execute(_LOCK, {"key": ENDPOINTS_LOCK})
    found = await get_webhook(connection, name)
    values: dict[str, Any] = {
        "name": name,
        "url": url,
        "event_types": list(event_types) if event_types is not None else None,
    }
    values["enabled"] = enabled
    if found is None:
        await connection.execute(_INSERT, {**values, "secret": secret})
    else:
        await connection.execute(_UPDATE, values)
    before = {key: getattr(found, key) for key in ("url", "event_types", "enabled")} if found else None
    after = {key: values[key] for key in ("url", "event_types", "enabled")}
    if before != after:
        await record_action(connection, actor, "webhook.put", f"webhook:{name}", reason, before=before, after=after)
    return found is None


async def stop_webhook(connection: AsyncConnection, name: str) -> int | None:
    """Send nothing more to a webhook that is about to be deleted; answer its endpoint's id."""
    endpoint_id: int | None = await connection.scalar(_DISABLE, {"name": name})
    return endpoint_id


async def drop_messages(connection: AsyncConnection, endpoint_id: int) -> int:
    """Drop a batch of what the endpoint had not received; answer how many, 0 when nothing is left."""
    dropped = 0
    for table in _TABLES_OF_MESSAGES:
        parameters = {"endpoint_id": endpoint_id, "limit": _DROP_BATCH}
        dropped += (await connection.execute(_DROP[table], parameters)).rowcount
    return dropped


async def delete_webhook(
    connection: AsyncConnection, name: str, dropped: int, *, actor: str, reason: str | None
) -> bool:
    """End a stopped webhook, with what came for it meanwhile; answer whether there was one."""
    await connection.execute(_LOCK, {"key": ENDPOINTS_LOCK})
    found = await get_webhook(connection, name)
    if found is None:
        return False
    while more := await drop_messages(connection, found.endpoint_id):
        dropped += more
    await connection.execute(_DROP_CLAIMS, {"endpoint_id": found.endpoint_id})
    await connection.execute(_DELETE, {"endpoint_id": found.endpoint_id})
    before = {"url": found.url, "event_types": found.event_types, "dropped": dropped}
    await record_action(connection, actor, "webhook.delete", f"webhook:{name}", reason, before=before, after=None)
    return True


async def rotate_secret(connection: AsyncConnection, name: str, secret: str, *, actor: str, reason: str | None) -> bool:
    """Sign with a new secret, for a day with the old one too; answer whether there is such a webhook."""
    parameters = {"name": name, "secret": secret, "hours": OLD_SECRET_HOURS}
    if (await connection.execute(_ROTATE, parameters)).rowcount == 0:
        return False
    await record_action(connection, actor, "webhook.rotate_secret", f"webhook:{name}", reason, before=None, after=None)
    return True


async def enable_webhook(connection: AsyncConnection, name: str, *, actor: str, reason: str | None) -> bool:
    """Send to a webhook again, at once, whatever stopped it; answer whether there is such a webhook."""
    found = await get_webhook(connection, name)
    if found is None:
        return False
    await connection.execute(_ENABLE, {"name": name})
    before = {"enabled": found.enabled, "open": found.open}
    if before != (after := {"enabled": True, "open": False}):
        await record_action(connection, actor, "webhook.enable", f"webhook:{name}", reason, before=before, after=after)
    return True
