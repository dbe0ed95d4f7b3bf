"""Couriers and waiting deliveries by the hundred, put into the database as a confirm and a courier's PUT leave them."""

from __future__ import annotations

import random
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import ops
from db.assignment import commit, couriers, deliveries, requeue, rounds, zones
from db.assignment.commit import Conflict
from db.assignment.deliveries import HeldByOther, StillLocked
from db.engine import Database
from db.outbox.write import write_events
from domain.assignment.states import AssignmentSource, CourierAction
from domain.outbox import EventType, order_event

# Their orders are over: no workflow has to live for them, so no cross-check starts one.
_ORDERS = text("""
    INSERT INTO orders (order_id, request_hash, customer_id, zone, status, lines, dropoff, hold_seconds, timeline)
    SELECT 'order-' || id, '', 'c-1', :zone, 'DELIVERED', '[]', '{}', 900, '[]'
    FROM unnest(CAST(:ids AS text[])) AS ids(id)
""")
_DELIVERIES = text("""
    INSERT INTO deliveries (delivery_id, order_id, zone, status, promised_at, dropoff, timeline)
    SELECT id, 'order-' || id, :zone, 'PENDING', clock_timestamp() + make_interval(secs => :promise_seconds),
        jsonb_build_object('lat', lat, 'lng', lng), '[]'
    FROM unnest(CAST(:ids AS text[]), CAST(:lats AS float8[]), CAST(:lngs AS float8[])) AS ids(id, lat, lng)
""")
_COURIERS = text("""
    INSERT INTO couriers (courier_id, zone, lat, lng, capacity, online)
    SELECT id, :zone, lat, lng, :capacity, true
    FROM unnest(CAST(:ids AS text[]), CAST(:lats AS float8[]), CAST(:lngs AS float8[])) AS ids(id, lat, lng)
""")
_OVERDUE = text("""
    UPDATE deliveries SET offer_expires_at = clock_timestamp() - interval '1 millisecond'
    WHERE status = 'OFFERED' AND (CAST(:delivery_id AS text) IS NULL OR delivery_id = :delivery_id)
""")


class Fleet:
    """Couriers and deliveries on a database."""

    def __init__(self, database: Database, seed: int = 1) -> None:
        self.database = database
        self._chance = random.Random(seed)

    async def deliveries(
        self, number: int, zone: str = "north", *, tell: bool = False, promise_seconds: float = 3600, prefix: str = "d"
    ) -> list[str]:
        """Ids of deliveries that wait from now on; `tell`: their events are written, so that the zone is woken."""
        ids = [f"{prefix}-{each:05}" for each in range(number)]

        async def insert(connection: AsyncConnection) -> None:
            await connection.execute(_ORDERS, {"ids": ids, "zone": zone})
            values = {"ids": ids, "zone": zone, "promise_seconds": promise_seconds, **self._places(number)}
            await connection.execute(_DELIVERIES, values)
            if tell:
                await write_events(
                    connection,
                    [order_event(EventType.DELIVERY_REQUESTED, each, f"order-{each}", {"zone": zone}) for each in ids],
                )

        await self.database.transact(insert)
        return ids

    async def couriers(self, number: int, zone: str = "north", *, capacity: int = 3, prefix: str = "c") -> list[str]:
        """Ids of couriers who are online."""
        ids = [f"{prefix}-{each:04}" for each in range(number)]
        values = {"ids": ids, "zone": zone, "capacity": capacity, **self._places(number)}
        await self.database.transact(lambda connection: connection.execute(_COURIERS, values))
        return ids

    def _places(self, number: int) -> dict[str, list[float]]:
        return {
            "lats": [52.52 + self._chance.uniform(-0.03, 0.03) for _ in range(number)],
            "lngs": [13.40 + self._chance.uniform(-0.03, 0.03) for _ in range(number)],
        }

    async def knobs(self, zone: str = "north", **changes: Any) -> None:
        """Turn a zone's knobs."""
        await self.database.transact(lambda c: zones.change_settings(c, zone, changes, actor="test", reason=None))

    async def give(
        self, delivery_id: str, courier_id: str, source: AssignmentSource = AssignmentSource.MANUAL, **how: Any
    ) -> list[Conflict]:
        """One assigner's attempt for one delivery."""
        pairs = [(delivery_id, courier_id)]
        return await commit.attempt(
            self.database, pairs, source, lambda connection: commit.assign(connection, pairs, source, **how)
        )

    async def offer(self, delivery_id: str, courier_id: str, window_seconds: float = 3600) -> list[Conflict]:
        """A round's offer of one delivery."""
        return await self.give(delivery_id, courier_id, AssignmentSource.AUTO, accept_window_seconds=window_seconds)

    async def act(self, delivery_id: str, courier_id: str, action: CourierAction) -> bool:
        """What a courier does; False where that lost to somebody else, which is counted as the API does."""
        try:
            await deliveries.courier_action(
                self.database, lambda c: deliveries.act(c, delivery_id, courier_id, action), delivery_id
            )
        except StillLocked:
            return False
        except HeldByOther as lost:
            holder = lost.holder
            await self.database.transact(lambda c: deliveries.count_lost(c, delivery_id, courier_id, action, holder))
            return False
        return True

    async def online(self, courier_id: str, online: bool, **changes: Any) -> None:
        """Put a courier online or offline."""
        async with self.database.read() as connection:
            row = await couriers.get_courier(connection, courier_id)
        assert row is not None
        values = {name: getattr(row, name) for name in ("zone", "lat", "lng", "capacity")} | changes
        await self.database.transact(lambda c: couriers.put_courier(c, courier_id, online=online, **values))

    async def deadline_passes(self, delivery_id: str | None = None) -> None:
        """Put an offer's deadline, or every offer's, into the past."""
        await self.database.transact(lambda c: c.execute(_OVERDUE, {"delivery_id": delivery_id}))

    async def expire(self, zone: str = "north") -> None:
        """What a round does first."""
        await self.database.transact(lambda c: requeue.expire_offers(c, zone))

    async def status(self, delivery_id: str) -> tuple[str, str | None]:
        """A delivery's status and courier."""
        async with self.database.read() as connection:
            row = await deliveries.get_delivery(connection, delivery_id)
        assert row is not None
        return row.status, row.courier_id

    async def story(self, delivery_id: str) -> list[str]:
        """What a delivery's timeline tells."""
        async with self.database.read() as connection:
            row = await deliveries.get_delivery(connection, delivery_id)
        assert row is not None
        return [entry["what"] for entry in row.timeline]

    async def load(self, courier_id: str) -> int:
        """How many deliveries are on a courier's hands."""
        async with self.database.read() as connection:
            row = await couriers.get_courier(connection, courier_id)
        assert row is not None
        return int(row.load)

    async def candidates(self, delivery_id: str) -> list[str]:
        """Couriers whom the next round may ask for a delivery."""
        async with self.database.read() as connection:
            waiting, free = await rounds.round_inputs(connection, "north", 1000, 0, 1)
        [not_by] = [row.not_by for row in waiting if row.delivery_id == delivery_id] or [None]
        return [] if not_by is None else [row.courier_id for row in free if row.courier_id not in not_by]

    async def conflicts(self) -> dict[str, int]:
        """Conflicts counted so far, by `source kind`."""
        async with self.database.read() as connection:
            return {f"{row.source} {row.kind}": row.total for row in await ops.conflict_totals(connection)}

    async def apart(self) -> dict[str, int]:
        """What was counted apart, by `source kind`."""
        async with self.database.read() as connection:
            return {f"{row.source} {row.kind}": row.total for row in await ops.apart_totals(connection)}

    async def sql(self, statement: str, **parameters: Any) -> list[Any]:
        """Run a statement by hand, as an operator would."""

        async def run(connection: AsyncConnection) -> list[Any]:
            result = await connection.execute(text(statement), parameters)
            return list(result.all()) if result.returns_rows else []

        return await self.database.transact(run)

    async def holds_together(self) -> None:
        """Assert what must be true between any two transactions: one courier a delivery, nobody over capacity, nobody
        asked twice."""
        async with self.database.read() as connection:
            checks = await ops.check_invariants(connection)
        assert [check for check in checks if check.violations] == []
        assert await self.sql("SELECT 1 FROM couriers WHERE load NOT BETWEEN 0 AND capacity") == []
        twice = "SELECT delivery_id FROM assignments WHERE offered GROUP BY delivery_id, courier_id HAVING count(*) > 1"
        assert await self.sql(twice) == []
