"""A whole Waybill for one test: API over real HTTP and a worker, in this process, on the run's shared servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from sqlalchemy import text
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError

from api.app import create_app, server_options
from db.engine import Database, create_engine
from domain.ids import Names
from domain.outbox import SHARDS
from local.ports import free_port
from settings import Settings
from tests.waiting import eventually
from worker import running_worker

TOKENS = {"client": "client-token", "courier": "courier-token", "admin": "admin-token"}


@dataclass(frozen=True)
class House:
    """One installation. `call` speaks to the API as one of the roles."""

    settings: Settings
    temporal: Client
    database: Database
    names: Names
    http: httpx.AsyncClient

    async def call(
        self, method: str, path: str, json: Any = None, *, role: str = "admin", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Call the API."""
        sent = {"authorization": f"Bearer {TOKENS[role]}", **(headers or {})}
        return await self.http.request(method, path, json=json, headers=sent)

    async def product(self, sku: str, stock: int) -> None:
        """Put a product on the shelf."""
        response = await self.call("PUT", f"/api/admin/products/{sku}", {"name": sku.title(), "stock": stock})
        assert response.status_code in (200, 201), response.text

    async def order(self, key: str, lines: Mapping[str, int], **body: Any) -> httpx.Response:
        """Ask for an order."""
        return await self.call(
            "POST", "/api/orders", order_body(lines, **body), role="client", headers={"Idempotency-Key": key}
        )

    async def reserved(self, key: str, lines: Mapping[str, int], **body: Any) -> str:
        """The id of an order that was reserved."""
        response = await self.order(key, lines, **body)
        assert response.status_code == 201, response.text
        return str(response.json()["orderId"])

    async def get(self, path: str) -> Any:
        """What a successful GET answers."""
        response = await self.call("GET", path)
        assert response.status_code == 200, response.text
        return response.json()

    async def stock(self, sku: str) -> tuple[int, int]:
        """A product's stock and reserved stock."""
        product = await self.get(f"/api/products/{sku}")
        return product["stock"], product["reservedStock"]

    async def metric(self, sample: str) -> float:
        """The value of one sample, `name` or `name{label="value"}`."""
        response = await self.call("GET", "/api/admin/ops/metrics")
        values = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
        return float(values[sample])

    async def sql(self, statement: str, **parameters: Any) -> list[Any]:
        """Run a statement by hand, as an operator would."""

        async def run(connection: Any) -> list[Any]:
            result = await connection.execute(text(statement), parameters)
            return list(result.all()) if result.returns_rows else []

        return await self.database.transact(run)

    async def webhook(self, name: str, url: str, **body: Any) -> str:
        """Make a webhook; answer its secret."""
        response = await self.call("PUT", f"/api/admin/webhooks/{name}", {"url": url, **body})
        assert response.status_code == 201, response.text
        return str(response.json()["secret"])

    async def status_becomes(self, order_id: str, status: str, timeout_seconds: float = 10.0) -> dict[str, Any]:
        """Wait for an order's status; answer the order."""

        async def reached() -> dict[str, Any] | None:
            order: dict[str, Any] = await self.get(f"/api/orders/{order_id}")
            return order if order["status"] == status else None

        order = await eventually(reached, timeout_seconds)
        assert order is not None
        return order

    async def confirmed(self, key: str, **body: Any) -> str:
        """The id of a confirmed order's delivery: one tea."""
        order_id = await self.reserved(key, {"tea": 1}, **body)
        response = await self.call("POST", f"/api/orders/{order_id}/confirm", role="client")
        assert response.status_code == 200, response.text
        return str(response.json()["deliveryId"])

    async def courier(self, courier_id: str, **more: Any) -> None:
        """Put a courier of capacity 3 online in the zone that orders go to."""
        body = {"zone": "north", "lat": 52.52, "lng": 13.40, "capacity": 3, "online": True, **more}
        response = await self.call("PUT", f"/api/couriers/{courier_id}", body, role="courier")
        assert response.status_code in (200, 201), response.text

    async def act(self, delivery_id: str, action: str, courier_id: str) -> httpx.Response:
        """What a courier does with a delivery."""
        return await self.call(
            "POST", f"/api/deliveries/{delivery_id}/{action}", {"courierId": courier_id}, role="courier"
        )

    async def delivery_becomes(self, delivery_id: str, status: str) -> dict[str, Any]:
        """Wait for a delivery's status; answer the delivery."""

        async def reached() -> dict[str, Any] | None:
            delivery: dict[str, Any] = await self.get(f"/api/deliveries/{delivery_id}")
            return delivery if delivery["status"] == status else None

        delivery = await eventually(reached, 15)
        assert delivery is not None
        return delivery

    async def invariants_hold(self) -> None:
        """Assert every promise, and that no counter drifted."""
        invariants = await self.get("/api/admin/ops/invariants")
        assert invariants["ok"], invariants
        drift = await self.get("/api/admin/ops/inventory/drift")
        assert drift["items"] == []

    def workflow(self, order_id: str) -> WorkflowHandle[Any, Any]:
        """An order's workflow."""
        return self.temporal.get_workflow_handle(self.names.order(order_id))


def order_body(lines: Mapping[str, int], **body: Any) -> dict[str, Any]:
    """A request for an order."""
    asked = [{"sku": sku, "quantity": quantity} for sku, quantity in lines.items()]
    return {"customerId": "c-1", "zone": "north", "lines": asked, "dropoff": {"lat": 52.5, "lng": 13.4}, **body}


@asynccontextmanager
async def open_house(
    database_url: str,
    client: Client,
    installation: str,
    *,
    worker: bool = True,
    **settings: Any,
) -> AsyncIterator[House]:
    """Open a house on a migrated database; with `worker=False` nobody is home."""
    house_settings = Settings(
        api_port=free_port(),
        database_url=database_url,
        installation=installation,
        client_token=TOKENS["client"],
        courier_token=TOKENS["courier"],
        admin_token=TOKENS["admin"],
        webhook_allow_private=True,
        **{"sweep_seconds": 3600, "cross_check_seconds": 3600, **settings},
    )
    database = Database(create_engine(database_url, name="test"))
    names = Names(installation)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        claim = text("UPDATE installation SET id = :id")
        await database.transact(lambda connection: connection.execute(claim, {"id": installation}))
        hurry = text("INSERT INTO zones (zone, batch_window_seconds) VALUES ('north', 0.1) ON CONFLICT DO NOTHING")
        await database.transact(lambda connection: connection.execute(hurry))
        http = await stack.enter_async_context(_serve(house_settings, client))
        house = House(house_settings, client, database, names, http)
        if worker:
            stack.push_async_callback(_tear_down, client, names)
        if worker:
            await stack.enter_async_context(running_worker(house_settings, client))
        yield house


@asynccontextmanager
async def _serve(settings: Settings, client: Client) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the API on its port; yields an HTTP client of it."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings, client), **server_options(settings)))
    task = asyncio.create_task(server.serve())

    async def started() -> bool:
        return server.started or task.done()

    await eventually(started)
    try:
        limits = httpx.Limits(max_connections=None)
        base_url = f"http://127.0.0.1:{settings.api_port}"
        async with httpx.AsyncClient(base_url=base_url, timeout=30, limits=limits) as http:
            yield http
    finally:
        server.should_exit = True
        await task


async def _tear_down(client: Client, names: Names) -> None:
    """End what would stand in the shared Temporal for ever."""
    for schedule in (names.sweep_schedule, names.cross_check_schedule, names.retention_schedule):
        with contextlib.suppress(RPCError):
            await client.get_schedule_handle(schedule).delete()
    for shard in range(SHARDS):
        with contextlib.suppress(RPCError):
            await client.get_workflow_handle(names.relay(shard)).terminate("the test is over")
