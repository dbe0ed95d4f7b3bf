"""Orders whose events one relay carries, and a receiver that can keep a sender waiting."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from domain.outbox import SHARDS, shard_of
from tests.houses import House
from tests.receivers import Receiver
from tests.waiting import eventually

STORY = ("order.reserved", "order.confirmed", "delivery.requested")


class PatientReceiver(Receiver):
    """Answers an event of an order in `held` only when that is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, asyncio.Event] = {}
        self.arrived: list[str] = []
        """Orders of the requests that came in, answered or not."""

    async def _receive(self, request: web.Request) -> web.Response:
        order_id = json.loads(await request.read())["data"].get("orderId")
        self.arrived.append(order_id)
        if order_id in self.held:
            await self.held[order_id].wait()
        return await super()._receive(request)


async def orders_of_one_shard(house: House, count: int, stock: int = 100) -> list[str]:
    """Reserved orders that the same relay carries."""
    await house.product("tea", stock)
    by_shard: dict[int, list[str]] = {}
    number = 0
    while True:
        order_id = await house.reserved(f"k-{number}", {"tea": 1})
        number += 1
        lanes = by_shard.setdefault(shard_of(f"order:{order_id}"), [])
        lanes.append(order_id)
        if len(lanes) == count:
            return lanes


async def confirm(house: House, order_id: str) -> None:
    """Confirm an order."""
    response = await house.call("POST", f"/api/orders/{order_id}/confirm", role="client")
    assert response.status_code == 200, response.text


async def failing(house: House, status: str, count: int = 1) -> list[dict[str, Any]]:
    """Wait until so many messages are in this state, as the list of failures shows it."""

    async def listed() -> list[dict[str, Any]] | None:
        items: list[dict[str, Any]] = (await house.get(f"/api/admin/ops/outbox/failures?status={status}"))["items"]
        return items if len(items) == count else None

    items = await eventually(listed, 30.0)
    assert items is not None
    return items


async def breaker(house: House, value: int, endpoint: str = "shop") -> None:
    """Wait until the endpoint's breaker is open (1) or closed (0)."""

    async def reached() -> bool:
        return await house.metric(f'ops_outbox_endpoint_open{{endpoint="{endpoint}"}}') == value

    await eventually(reached)


async def all_is_settled(house: House) -> None:
    """Wait until nothing is on its way any more."""

    async def empty() -> bool:
        return await house.metric("ops_outbox_backlog_size") == 0

    await eventually(empty)


async def give_up_trying(house: House) -> None:
    """As if every message that is being retried had used up its tries."""
    await house.sql("UPDATE outbox_failures SET status = 'FAILED', attempts = 3, next_attempt_at = NULL")


async def decide(house: House, message_id: str, action: str) -> None:
    """An admin replays or ignores a message."""
    response = await house.call("POST", f"/api/admin/ops/outbox/failures/{message_id}/{action}", {"reason": "drill"})
    assert response.status_code == 200, response.text


async def stage_failed(house: House, count: int, prefix: str = "sku", sink: str = "shop") -> set[str]:
    """So many messages of a webhook that FAILED, each in a lane of its own; answers their events' ids."""
    rows = await house.sql(
        """
        WITH logged AS (
            INSERT INTO outbox_events (event_id, event_type, subject, lane, shard, data, occurred_at)
            SELECT gen_random_uuid(), 'waybill.inventory.adjusted', :prefix || n, 'sku:' || :prefix || n, n % :shards,
                jsonb_build_object('sku', :prefix || n), now()
            FROM generate_series(1, :count) n RETURNING *
        ), failed AS (
            INSERT INTO outbox_failures (endpoint_id, position, event_position, shard, lane, event_type, status,
                attempts, error_class, last_error, fingerprint)
            SELECT endpoint_id, position, position, shard, lane, event_type, 'FAILED', 3, 'event', 'HTTP 400', :prefix
            FROM logged, outbox_endpoints WHERE name = :sink
        )
        SELECT CAST(event_id AS text) FROM logged
        """,
        prefix=prefix,
        count=count,
        sink=sink,
        shards=SHARDS,
    )
    return {event_id for (event_id,) in rows}
