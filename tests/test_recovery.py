"""What a client was promised survives the death of a worker and of the database."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio.client import Client

from db.migrations import migrate
from domain.ids import order_id as derive_order_id
from domain.outbox import SHARDS
from local.temporal import EmbeddedTemporal
from tests.houses import House, open_house
from tests.processes import worker_process
from tests.receivers import Receiver
from tests.servers import fresh_database, throw_away_postgres
from tests.waiting import eventually


async def _workers_alive(house: House) -> int:
    [[count]] = await house.sql("SELECT count(*) FROM workers WHERE heartbeat_at > now() - interval '5 seconds'")
    return int(count)


async def test_a_worker_killed_in_mid_reserve_leaves_one_outcome_for_the_clients_retry(
    database_url: str, client: Client, installation: str, temporal: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with open_house(database_url, client, installation, worker=False) as house:
        await house.product("tea", 5)
        log = tmp_path / "worker.log"

        async def kill_in_mid_reserve(connection: AsyncConnection) -> asyncio.Task[httpx.Response]:
            await connection.execute(text("SELECT * FROM products FOR UPDATE"))
            with worker_process(house.settings, temporal.address, log):
                await eventually(lambda: _workers_alive(house))
                asking = asyncio.create_task(house.order("k-1", {"tea": 2}))
                await eventually(lambda: _reserving(house))
            return asking  # the worker was killed with its transaction open

        first = await house.database.transact(kill_in_mid_reserve)
        with worker_process(house.settings, temporal.address, log):

            async def answered() -> httpx.Response | None:
                answer = await house.order("k-1", {"tea": 2})
                return answer if answer.status_code in (200, 201) else None

            answer = await eventually(answered, 60)
            assert answer is not None
            assert answer.json()["orderId"] == derive_order_id("client", "k-1")
            assert (await first).status_code in (200, 201, 503)
            assert await house.stock("tea") == (5, 2)
            await house.invariants_hold()


async def _reserving(house: House) -> bool:
    """Whether a worker waits for the locked product."""
    [[waiting]] = await house.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return bool(waiting)


async def test_a_worker_told_to_stop_drains_and_takes_its_row_away(
    database_url: str, client: Client, installation: str, temporal: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with open_house(database_url, client, installation, worker=False) as house:
        with worker_process(house.settings, temporal.address, tmp_path / "worker.log") as process:
            await eventually(lambda: _workers_alive(house))
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 10) == 0
            assert await _workers_alive(house) == 0
            answer = await house.order("k-1", {"tea": 1})
            assert answer.status_code in (422, 503)


async def _owners(house: House) -> Counter[str]:
    return Counter(owner for [owner] in await house.sql("SELECT owner FROM outbox_shards WHERE owner IS NOT NULL"))


async def test_relays_spread_over_the_workers_and_move_when_one_dies(
    database_url: str, client: Client, installation: str, temporal: EmbeddedTemporal, tmp_path: Path, receiver: Receiver
) -> None:
    async with open_house(database_url, client, installation, worker=False) as house:
        log = tmp_path / "worker.log"
        await house.webhook("shop", receiver.url)
        with worker_process(house.settings, temporal.address, log) as first:
            await eventually(lambda: _carried_by(house, [SHARDS]))
            with worker_process(house.settings, temporal.address, log):
                await eventually(lambda: _carried_by(house, [SHARDS // 2, SHARDS // 2]), 30)
                first.send_signal(signal.SIGKILL)
                await eventually(lambda: _carried_by(house, [SHARDS]), 30)
                skus = [f"sku-{number}" for number in range(20)]
                await asyncio.gather(*(house.product(sku, 1) for sku in skus))

                async def arrived() -> bool:
                    return {each.event["subject"] for each in receiver.accepted} == set(skus)

                await eventually(arrived)


async def _carried_by(house: House, shards: list[int]) -> bool:
    return sorted((await _owners(house)).values()) == shards


async def test_a_worker_that_drains_sends_nothing_twice(
    database_url: str, client: Client, installation: str, temporal: EmbeddedTemporal, tmp_path: Path, receiver: Receiver
) -> None:
    receiver.answer_seconds = 0.2
    async with open_house(database_url, client, installation, worker=False) as house:
        log = tmp_path / "worker.log"
        await house.webhook("shop", receiver.url)
        for number in range(5):  # five events in each of forty lanes
            puts = (
                house.call("PUT", f"/api/admin/products/sku-{sku}", {"name": "x", "stock": number + 1})
                for sku in range(40)
            )
            await asyncio.gather(*puts)
        with worker_process(house.settings, temporal.address, log) as first:

            async def under_way() -> bool:
                return len(receiver.requests) > 30

            await eventually(under_way)
            first.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(first.wait, 10) == 0
            assert len(receiver.requests) < 200
            with worker_process(house.settings, temporal.address, log):

                async def all_arrived() -> bool:
                    return len(receiver.accepted) >= 200

                await eventually(all_arrived, 30)
        ids = Counter(each.headers["webhook-id"] for each in receiver.requests)
        assert len(ids) == 200
        assert set(ids.values()) == {1}


async def test_postgresql_stopped_and_started_under_load_loses_no_accepted_order(
    client: Client, installation: str, receiver: Receiver
) -> None:
    with throw_away_postgres() as postgres:
        async with fresh_database(postgres, installation) as url:
            await asyncio.to_thread(migrate, url, installation)
            async with open_house(url, client, installation) as house:
                await house.webhook("shop", receiver.url)
                await house.product("tea", 1000)
                accepted, undecided = await _load(house, lambda: _stop_and_start(postgres))
                assert accepted
                for key in undecided:
                    await _ask_until_decided(house, key)
                orders = accepted | {derive_order_id("client", key) for key in undecided}
                assert await house.stock("tea") == (1000, len(orders))
                assert await house.metric('ops_orders{status="RESERVED"}') == len(orders)

                async def all_told() -> bool:
                    told = {each.event["subject"] for each in receiver.accepted if each.type == "order.reserved"}
                    return told == orders

                await eventually(all_told, 60)
                await house.invariants_hold()


def _stop_and_start(postgres: Any) -> None:
    postgres.stop()
    postgres.start()


async def _load(house: House, disturb: Any) -> tuple[set[str], list[str]]:
    """Keep ordering while `disturb` runs and a while after; answer the accepted orders' ids and the undecided keys."""
    accepted: set[str] = set()
    undecided: list[str] = []
    numbers = iter(range(10_000))
    over = False

    async def shop() -> None:
        while not over:
            key = f"k-{next(numbers)}"
            answer = await house.order(key, {"tea": 1})
            if answer.status_code in (200, 201):
                accepted.add(answer.json()["orderId"])
            else:
                assert answer.status_code == 503, answer.text
                assert answer.headers["content-type"] == "application/problem+json"
                undecided.append(key)

    async def going(count: int) -> bool:
        return len(accepted) >= count

    shoppers = [asyncio.create_task(shop()) for _ in range(4)]
    await eventually(lambda: going(10))
    await asyncio.to_thread(disturb)
    before = len(accepted)
    await eventually(lambda: going(before + 10), 60)
    over = True
    await asyncio.gather(*shoppers)
    return accepted, undecided


async def _ask_until_decided(house: House, key: str) -> None:
    async def decided() -> bool:
        return (await house.order(key, {"tea": 1})).status_code in (200, 201)

    await eventually(decided, 60)
