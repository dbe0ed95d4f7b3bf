"""What is on couriers' hands: their locks, and taking deliveries off."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.assignment.states import AssignmentOutcome

_LOCK = text("""
    SELECT courier_id, zone, capacity, load, online FROM couriers
    WHERE courier_id = ANY(CAST(:courier_ids AS text[])) ORDER BY courier_id FOR NO KEY UPDATE
""")
_LOCK_FREE = text(f"{_LOCK.text} SKIP LOCKED")
_END = text("""
    WITH ended AS (
        UPDATE assignments SET live = false, outcome = :outcome, ended_at = now()
        WHERE delivery_id = ANY(CAST(:delivery_ids AS text[])) AND live RETURNING courier_id
    )
    UPDATE couriers c SET load = GREATEST(c.load - freed.number, 0), updated_at = now()
    FROM (SELECT courier_id, CAST(count(*) AS integer) AS number FROM ended GROUP BY courier_id) freed
    WHERE c.courier_id = freed.courier_id
""")


async def lock_couriers(
    connection: AsyncConnection, courier_ids: Collection[str], *, wait: bool = True
) -> dict[str, Row[Any]]:
    """Lock the couriers in the house's order; those that exist and, without `wait`, that nobody else has locked."""
    rows = await connection.execute(_LOCK if wait else _LOCK_FREE, {"courier_ids": sorted(courier_ids)})
    return {row.courier_id: row for row in rows}


async def end_assignments(
    connection: AsyncConnection, delivery_ids: Collection[str], outcome: AssignmentOutcome
) -> None:
    """Take locked deliveries off the hands of their couriers, who are locked too."""
    await connection.execute(_END, {"delivery_ids": list(delivery_ids), "outcome": outcome})
