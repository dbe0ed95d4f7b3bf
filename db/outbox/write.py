"""Writing events, in the transaction of the change that they tell of."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import announce
from domain.notifications import wanted_by_email
from domain.outbox import INTERNAL_TYPES, Event, shard_of, wanted_by_workflows

# Whoever writes an event keeps this until its commit, and who changes the endpoints takes it alone: a webhook gets
# exactly what is committed after it was made. A statement of its own, so that the next one sees what it waited for.
ENDPOINTS_LOCK = 7_226_114
EVENTS_CHANNEL = "waybill_events"
"""Notified soon after a commit that relays should see. They look by themselves too, only later."""
_SHARE_ENDPOINTS = text("SELECT pg_advisory_xact_lock_shared(:key)")

_WRITE = text("""
    WITH new AS (
        SELECT * FROM unnest(CAST(:event_ids AS uuid[]), CAST(:event_types AS text[]), CAST(:subjects AS text[]),
            CAST(:lanes AS text[]), CAST(:shards AS int[]), CAST(:data AS text[]), CAST(:internal AS bool[]),
            CAST(:workflow AS bool[]), CAST(:email AS bool[]))
            WITH ORDINALITY AS n(event_id, event_type, subject, lane, shard, data, internal, workflow, email, place)
    ), logged AS (
        INSERT INTO outbox_events (event_id, event_type, subject, lane, shard, data, occurred_at)
        SELECT event_id, event_type, subject, lane, shard, CAST(data AS jsonb), clock_timestamp()
        FROM new ORDER BY place
        RETURNING position, event_id, event_type, lane, shard
    )
    INSERT INTO outbox_messages (shard, endpoint_id, position, event_position, lane)
    SELECT logged.shard, endpoint.endpoint_id, logged.position, logged.position,
        CASE WHEN logged.event_type = ANY(endpoint.unordered_types) THEN 'event:' || logged.position
            ELSE logged.lane END
    FROM logged JOIN new USING (event_id) JOIN outbox_endpoints endpoint
        ON CASE endpoint.kind WHEN 'workflow' THEN new.workflow
            WHEN 'email' THEN new.email AND endpoint.enabled AND (SELECT orders.email IS NOT NULL FROM orders
                WHERE orders.order_id = CAST(new.data AS jsonb) ->> 'orderId')
            ELSE NOT new.internal
                AND (endpoint.event_types IS NULL OR logged.event_type = ANY(endpoint.event_types)) END
""")


async def write_events(connection: AsyncConnection, events: Sequence[Event]) -> None:
    """Log the events in this order, with a message for every endpoint that wants each.

    The caller holds the lock of the lane's row (the order, the product): that is what numbers the lane. A disabled
    webhook gets its messages too; they wait for it. E-mail gets none while it is off, and none of an order without an
    address, which is looked up here: events do not carry it.
    """
    announce(connection, EVENTS_CHANNEL)
    await connection.execute(_SHARE_ENDPOINTS, {"key": ENDPOINTS_LOCK})
    await connection.execute(
        _WRITE,
        {
            "event_ids": [event.event_id for event in events],
            "event_types": [event.event_type for event in events],
            "subjects": [event.subject for event in events],
            "lanes": [event.lane for event in events],
            "shards": [shard_of(event.lane) for event in events],
            "data": [json.dumps(event.data) for event in events],
            "internal": [event.event_type in INTERNAL_TYPES for event in events],
            "workflow": [wanted_by_workflows(event) for event in events],
            "email": [wanted_by_email(event) for event in events],
        },
    )
