"""Couriers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.assignment.zones import wake_if_waiting

_LOCK = text("""
    SELECT courier_id, zone, capacity, load, online FROM couriers
    WHERE courier_id = ANY(CAST(:courier_ids AS text[])) ORDER BY courier_id FOR NO KEY UPDATE
""")
_INSERT = text("""
    INSERT INTO couriers (courier_id, zone, lat, lng, capacity, online)
    VALUES (:courier_id, :zone, :lat, :lng, :capacity, :online)
    ON CONFLICT (courier_id) DO NOTHING RETURNING courier_id
""")
_UPDATE = text("""
    UPDATE couriers SET zone = :zone, lat = :lat, lng = :lng, capacity = :capacity, online = :online, updated_at = now()
    WHERE courier_id = :courier_id
""")
_MOVE_LOAD = text(
    "UPDATE couriers SET load = GREATEST(load + :by, 0), updated_at = now() WHERE courier_id = :courier_id"
)
_GET = text("SELECT courier_id, zone, lat, lng, capacity, load, online FROM couriers WHERE courier_id = :courier_id")


class CapacityBelowLoad(Exception):
    """The capacity asked for is less than what the courier carries."""

    def __init__(self, load: int) -> None:
        super().__init__(f"the courier carries {load}")
        self.load = load


async def lock_couriers(connection: AsyncConnection, courier_ids: Collection[str]) -> dict[str, Row[Any]]:
    """Lock the couriers in the house's order; those that exist."""
    rows = await connection.execute(_LOCK, {"courier_ids": sorted(courier_ids)})
    return {row.courier_id: row for row in rows}


async def move_load(connection: AsyncConnection, courier_id: str, by: int) -> None:
    """Put so many deliveries on a locked courier's hands, or take them off. The table's check is the last guard."""
    await connection.execute(_MOVE_LOAD, {"courier_id": courier_id, "by": by})


async def put_courier(
    connection: AsyncConnection, courier_id: str, zone: str, lat: float, lng: float, capacity: int, online: bool
) -> bool:
    """Make or change a courier; answer whether they are new. Raises CapacityBelowLoad.

    One who can take a delivery wakes their zone, if something waits there.
    """
    values = {"courier_id": courier_id, "zone": zone, "lat": lat, "lng": lng, "capacity": capacity, "online": online}
    created = await connection.scalar(_INSERT, values) is not None
    load = 0
    if not created:
        load = (await lock_couriers(connection, [courier_id]))[courier_id].load
        if capacity < load:
            raise CapacityBelowLoad(load)
        await connection.execute(_UPDATE, values)
    if online and load < capacity:
        await wake_if_waiting(connection, zone)
    return created


async def get_courier(connection: AsyncConnection, courier_id: str) -> Row[Any] | None:
    """One courier."""
    return (await connection.execute(_GET, {"courier_id": courier_id})).one_or_none()
