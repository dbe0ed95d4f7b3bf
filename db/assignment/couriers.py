"""Couriers: where they are, how much they can take, whether they work."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.assignment.load import lock_couriers
from db.assignment.requeue import courier_left, courier_returned
from db.assignment.zones import wake_if_waiting
from db.ops import record_action

_INSERT = text("""
    INSERT INTO couriers (courier_id, zone, lat, lng, capacity, online)
    VALUES (:courier_id, :zone, :lat, :lng, :capacity, :online)
    ON CONFLICT (courier_id) DO NOTHING RETURNING courier_id
""")
_UPDATE = text("""
    UPDATE couriers SET zone = :zone, lat = :lat, lng = :lng, capacity = :capacity, online = :online, updated_at = now()
    WHERE courier_id = :courier_id
""")
_GET = text("SELECT courier_id, zone, lat, lng, capacity, load, online FROM couriers WHERE courier_id = :courier_id")


class CapacityBelowLoad(Exception):
    """The capacity asked for is less than what the courier carries."""

    def __init__(self, load: int) -> None:
        super().__init__(f"the courier carries {load}")
        self.load = load


async def put_courier(
    connection: AsyncConnection,
    courier_id: str,
    zone: str,
    lat: float,
    lng: float,
    capacity: int,
    online: bool,
    *,
    actor: str | None = None,
    reason: str | None = None,
) -> bool:
    """Make or change a courier; answer whether they are new. Raises CapacityBelowLoad.

    One who can take a delivery wakes their zone, if something waits there. One who leaves gives back what they have
    not picked up. `actor`: the admin who does it in the courier's place, which is audited; where the courier is only
    with a reason, for that changes all the time.
    """
    wish = {"zone": zone, "lat": lat, "lng": lng, "capacity": capacity, "online": online}
    audited = wish if reason is not None else {name: wish[name] for name in wish if name not in ("lat", "lng")}
    values = {"courier_id": courier_id, **wish}
    created = await connection.scalar(_INSERT, values) is not None
    load, before = 0, None
    if not created:
        await lock_couriers(connection, [courier_id])
        found = await get_courier(connection, courier_id)
        assert found is not None
        before = {name: getattr(found, name) for name in audited}
        load = await _change(connection, found, values)
    if online and load < capacity:
        await wake_if_waiting(connection, zone)
    if actor is not None:
        await record_action(
            connection, actor, "courier.put", f"courier:{courier_id}", reason, before=before, after=audited
        )
    return created


async def _change(connection: AsyncConnection, before: Row[Any], values: dict[str, Any]) -> int:
    """Change a locked courier; answer what they have on their hands."""
    courier_id = before.courier_id
    if before.online and not values["online"]:
        await courier_left(connection, courier_id)
    elif values["online"] and not before.online:
        await courier_returned(connection, courier_id)
    after = await get_courier(connection, courier_id)
    assert after is not None
    if values["capacity"] < after.load:
        raise CapacityBelowLoad(after.load)
    await connection.execute(_UPDATE, values)
    return int(after.load)


async def get_courier(connection: AsyncConnection, courier_id: str) -> Row[Any] | None:
    """One courier."""
    return (await connection.execute(_GET, {"courier_id": courier_id})).one_or_none()
