"""The demo from the first product on the shelf to the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from local.announce import say
from local.demo.baskets import Basket, arrivals, fates, shelf
from local.demo.client import Api, GaveUp, Unexpected
from local.demo.fleet import Fleet, Pace
from local.demo.progress import Counts, shown
from local.demo.receiver import EventReceiver
from local.demo.report import Outcome, conflicts_between
from local.demo.shop import ENDS, Order, Shop

WEBHOOK = "demo"
_PUTS_AT_ONCE = 8
_LOOK_SECONDS = 0.2
_INVARIANTS_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the demo runs."""

    seed: int = 1
    rate: float = 8.0
    """Orders a second."""
    couriers: int = 6
    """In each zone."""
    patience_seconds: float = 240.0
    """How long an order, or its last event, may take."""
    pace: Pace = field(default_factory=Pace)


async def run_demo(url: str, tokens: Mapping[str, str], baskets: Sequence[Basket], options: Options) -> Outcome:
    """Drive the baskets through the API at `url`; answer what happened.

    Raises GaveUp and Unexpected where the stage cannot be set.
    """
    chance = random.Random(options.seed)
    orders = _orders(baskets, options, chance)
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(Api(url, tokens, options.patience_seconds))
        products = shelf(baskets, chance)
        say(f"{len(products)} products go on the shelf.")
        await _fill(api, products)
        receiver = await stack.enter_async_context(EventReceiver())
        await stack.enter_async_context(_webhook(api, receiver))
        fleet = Fleet(api, options.couriers, options.pace, options.seed)
        say(f"Couriers come online; {len(orders)} baskets arrive at {options.rate:g} a second.")
        before = await _conflicts(api)
        shop = Shop(api, orders, chance, options.patience_seconds)
        async with fleet.working(), shown(lambda: _counts(shop, receiver)):
            async with asyncio.TaskGroup() as group:
                group.create_task(shop.open())
                group.create_task(shop.see_them_end(receiver))
            await _events_arrive(orders, receiver, options.patience_seconds)
        outcome = Outcome(orders=orders, receiver=receiver, retries=api.retries, surprises=fleet.surprises)
        outcome.conflicts = conflicts_between(before, await _conflicts(api))
        outcome.invariants = await _read(api, "/api/admin/ops/invariants")
        outcome.drift = await _read(api, "/api/admin/ops/inventory/drift")
        return outcome


def _orders(baskets: Sequence[Basket], options: Options, chance: random.Random) -> list[Order]:
    """The baskets with their times and fates; the keys are this run's own."""
    run = secrets.token_hex(4)
    times = arrivals(baskets, options.rate)
    return [
        Order(basket, fate, f"demo-{run}-{basket.basket_id}", arrives)
        for basket, fate, arrives in zip(baskets, fates(len(baskets), chance), times, strict=True)
    ]


async def _fill(api: Api, products: Mapping[str, tuple[str, int]]) -> None:
    """Put the products on the shelf; what an earlier, broken-off demo still holds is not taken from it."""
    turns = asyncio.Semaphore(_PUTS_AT_ONCE)

    async def put(sku: str, name: str, stock: int) -> None:
        async with turns:
            path = f"/api/admin/products/{sku}"
            reason = "make demo"
            body = {"name": name, "stock": stock, "reason": reason}
            answer = await api.call("admin", "PUT", path, body, expect=(200, 201, 409))
            if answer.status == 409:
                body["stock"] = stock + answer.body["reservedStock"]
                await api.call("admin", "PUT", path, body, expect=(200, 201))

    await asyncio.gather(*(put(sku, name, stock) for sku, (name, stock) in products.items()))


@asynccontextmanager
async def _webhook(api: Api, receiver: EventReceiver) -> AsyncIterator[None]:
    """Have everything that is committed from now on sent to the receiver; in the end the webhook goes."""
    path = f"/api/admin/webhooks/{WEBHOOK}"
    await api.call("admin", "DELETE", path, expect=(204, 404))  # of a demo that was killed
    body = {"url": receiver.url, "reason": "make demo"}
    answer = await api.call("admin", "PUT", path, body, expect=(200, 201, 422))
    if answer.status == 422:
        raise Unexpected(f"{answer.body['title']} The demo's receiver listens on loopback.")
    if "secret" not in answer.body:  # the answer that told it was lost on the way
        answer = await api.call("admin", "POST", f"{path}/rotate-secret", {"reason": "make demo"})
    receiver.secret = answer.body["secret"]
    try:
        yield
    finally:
        with contextlib.suppress(GaveUp, Unexpected):
            await api.call("admin", "DELETE", path, expect=(204, 404), patience_seconds=30)


async def _events_arrive(orders: Sequence[Order], receiver: EventReceiver, patience_seconds: float) -> None:
    """Wait until every order that ended has told its whole story, or patience ends."""
    ended = [order for order in orders if order.status in ENDS]
    deadline = time.monotonic() + patience_seconds
    while any(receiver.missing(each.order_id or "", each.status or "", confirmed=each.confirmed) for each in ended):
        if time.monotonic() > deadline:
            return  # the report names them
        await asyncio.sleep(_LOOK_SECONDS)


async def _conflicts(api: Api) -> dict[str, int]:
    """So far, by source and kind."""
    answer = await api.call("admin", "GET", "/api/admin/ops/assignment/conflicts")
    return {f"{item['source']}: {item['kind']}": item["total"] for item in answer.body["items"]}


async def _read(api: Api, path: str) -> Any:
    """What it answers; None where it does not."""
    try:
        return (await api.call("admin", "GET", path, patience_seconds=_INVARIANTS_SECONDS)).body
    except (GaveUp, Unexpected) as error:
        say(str(error))
        return None


def _counts(shop: Shop, receiver: EventReceiver) -> Counts:
    return Counts(
        total=len(shop.orders),
        arrived=shop.arrived,
        accepted=sum(order.accepted for order in shop.orders),
        ended=sum(order.ended for order in shop.orders),
        events=receiver.received,
        retries=shop.api.retries.total(),
    )
