"""Webhooks, as an admin makes, changes and ends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.ops import record_action

# Whoever writes an event has read this table and keeps that lock until its commit. So this waits for every event under
# way, and those after it see the change: a webhook receives exactly what is committed after it was made.
_LOCK_TABLE = text("LOCK TABLE outbox_endpoints IN ACCESS EXCLUSIVE MODE")
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
    UPDATE outbox_endpoints SET enabled = true, open_until = NULL, consecutive_failures = 0, last_error = NULL
    WHERE name = :name AND kind = 'webhook'
""")
_ROTATE = text("""
    UPDATE outbox_endpoints SET previous_secret = secret, secret = :secret,
        previous_secret_until = now() + make_interval(hours => :hours)
    WHERE name = :name AND kind = 'webhook'
""")
OLD_SECRET_HOURS = 24
"""How long messages are signed with the previous secret too."""

_TABLES_OF_MESSAGES = ("outbox_claims", "outbox_messages", "outbox_parked", "outbox_failures")


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
    await connection.execute(_LOCK_TABLE)
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


async def delete_webhook(connection: AsyncConnection, name: str, *, actor: str, reason: str | None) -> bool:
    """End a webhook and drop what it had not received, which the audit counts; answer whether there was one."""
    await connection.execute(_LOCK_TABLE)
    found = await get_webhook(connection, name)
    if found is None:
        return False
    dropped = {}
    for table in _TABLES_OF_MESSAGES:
        key = {"endpoint_id": found.endpoint_id}
        dropped[table] = (
            await connection.execute(text(f"DELETE FROM {table} WHERE endpoint_id = :endpoint_id"), key)
        ).rowcount
    await connection.execute(text("DELETE FROM outbox_endpoints WHERE name = :name"), {"name": name})
    before = {"url": found.url, "event_types": found.event_types, "enabled": found.enabled, "dropped": dropped}
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
