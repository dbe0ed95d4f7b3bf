"""Accepted orders survive what can happen to the stack: kills, and the loss of everything that Temporal knew."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.leftovers import end_leftovers
from local.stack import DataDir, read_stack_env
from tests.houses import order_body
from tests.local.stacks import everything, stack_environment, stack_up
from tests.servers import throw_away_directory
from tests.waiting import wait_until


@pytest.fixture(name="data_dir")
def _data_dir() -> Iterator[DataDir]:
    with throw_away_directory() as directory:
        data_dir = DataDir(directory)
        data_dir.create()
        yield data_dir
        end_leftovers(data_dir.path, data_dir.postgres)


class Shop:
    """The running stack's API, as an admin calls it."""

    def __init__(self, data_dir: DataDir) -> None:
        values = read_stack_env(data_dir.stack_env)
        self._url = values["WAYBILL_API_URL"]
        self._token = values["WAYBILL_ADMIN_TOKEN"]

    def call(self, method: str, path: str, json: Any = None, *, key: str = "none") -> Any:
        """The answer to a call that succeeds."""
        headers = {"authorization": f"Bearer {self._token}", "idempotency-key": key}
        answer = httpx.request(method, self._url + path, json=json, headers=headers, timeout=30)
        assert answer.is_success, answer.text
        return answer.json()

    def order(self, key: str, **body: Any) -> str:
        """The id of an order that was reserved."""
        return str(self.call("POST", "/api/orders", order_body({"tea": 1}, **body), key=key)["orderId"])

    def status(self, order_id: str) -> str:
        """An order's status."""
        return str(self.call("GET", f"/api/orders/{order_id}")["status"])


def test_orders_survive_kills_and_the_loss_of_temporals_whole_database(data_dir: DataDir, tmp_path: Path) -> None:
    environment, log = stack_environment(data_dir), tmp_path / "up.log"
    supervisor = stack_up(environment, log)
    shop = Shop(data_dir)
    shop.call("PUT", "/api/admin/products/tea", {"name": "Tea", "stock": 10})
    short, kept = shop.order("k-1", holdSeconds=16), shop.order("k-2")
    paid = shop.order("k-3")
    shop.call("POST", f"/api/orders/{paid}/confirm")

    supervisor.signal(signal.SIGKILL)
    wait_until(lambda: not supervisor.running)
    for process in everything(data_dir):
        process.kill()
    supervisor = stack_up(environment, log)
    shop = Shop(data_dir)
    assert [shop.status(each) for each in (kept, paid)] == ["RESERVED", "CONFIRMED"]

    supervisor.signal(signal.SIGINT)
    wait_until(lambda: not supervisor.running, 10)
    for file in data_dir.path.glob("temporal.db*"):
        file.unlink()
    supervisor = stack_up(environment, log)
    shop = Shop(data_dir)
    wait_until(lambda: shop.status(short) == "EXPIRED", 30)
    assert shop.call("POST", f"/api/orders/{kept}/confirm")["status"] == "CONFIRMED"
    courier = {"zone": "north", "lat": 52.5, "lng": 13.4, "capacity": 5, "online": True}
    shop.call("PUT", "/api/couriers/ada", courier)
    for order_id in (kept, paid):
        delivery_id = shop.call("GET", f"/api/orders/{order_id}")["deliveryId"]
        path = f"/api/deliveries/{delivery_id}"

        def assigned(path: str = path) -> bool:
            return bool(shop.call("GET", path)["status"] == "ASSIGNED")

        wait_until(assigned, 20)
        for step in ("pickup", "complete"):
            shop.call("POST", f"{path}/{step}", {"courierId": "ada"})
        assert shop.status(order_id) == "DELIVERED"
    assert shop.call("GET", "/api/admin/ops/invariants")["ok"]
    supervisor.signal(signal.SIGINT)
    wait_until(lambda: not supervisor.running, 10)
    assert everything(data_dir) == []
