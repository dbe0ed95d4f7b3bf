"""Deliveries."""

from __future__ import annotations

import json
from dataclasses import asdict

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.order import Place

_REQUEST = text("""
    INSERT INTO deliveries (delivery_id, order_id, zone, status, promised_at, pickup, dropoff, timeline)
    VALUES (:delivery_id, :order_id, :zone, 'PENDING', clock_timestamp() + make_interval(secs => :promise_seconds),
        CAST(:pickup AS jsonb), CAST(:dropoff AS jsonb),
        jsonb_build_array(jsonb_build_object('at', clock_timestamp(), 'what', 'requested')))
""")


async def request_delivery(
    connection: AsyncConnection,
    delivery_id: str,
    order_id: str,
    zone: str,
    pickup: Place | None,
    dropoff: Place,
    promise_seconds: int,
) -> None:
    """Insert the confirmed order's delivery, promised within so many seconds from now."""
    await connection.execute(
        _REQUEST,
        {
            "delivery_id": delivery_id,
            "order_id": order_id,
            "zone": zone,
            "pickup": json.dumps(asdict(pickup)) if pickup else None,
            "dropoff": json.dumps(asdict(dropoff)),
            "promise_seconds": float(promise_seconds),
        },
    )


_CANCEL = text("""
    UPDATE deliveries SET status = 'CANCELLED', offer_expires_at = NULL,
        timeline = timeline || jsonb_build_object('at', clock_timestamp(), 'what', 'cancelled')
    WHERE order_id = :order_id AND status IN ('PENDING', 'OFFERED', 'ASSIGNED', 'NEEDS_ATTENTION')
    RETURNING delivery_id
""")


async def cancel_delivery(connection: AsyncConnection, order_id: str) -> str | None:
    """Cancel an order's delivery unless it was picked up; answer its id, or None where it was."""
    delivery_id: str | None = await connection.scalar(_CANCEL, {"order_id": order_id})
    return delivery_id
