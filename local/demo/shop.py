"""Shoppers: each takes one basket through the API, from the order to its end."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

from local.demo.baskets import Basket, Fate
from local.demo.client import Answer, Api, GaveUp, Unexpected
from local.demo.fleet import ZONES, place
from local.demo.receiver import EventReceiver

ENDS = ("DELIVERED", "CANCELLED", "EXPIRED")
_HOLD_SECONDS = 600
_SHORT_HOLD_SECONDS = (2, 5)
_THINK_SECONDS = (0.2, 1.5)
_REGRET_SECONDS = (0.0, 3.0)
_LOOK_SECONDS = 0.5
_LOOK_AGAIN_SECONDS = 5.0


@dataclass
class Order:
    """One basket's order, and all that is known of it."""

    basket: Basket
    fate: Fate
    key: str
    arrives: float
    """In seconds from the start."""
    order_id: str | None = None
    status: str | None = None
    """As the API said last: RESERVED, CONFIRMED, …, REJECTED; INVALID where nothing was left to order."""
    confirmed: bool = False
    zero_lines: bool = False
    """It was answered 422 for its lines of quantity 0."""
    picked_up_first: bool = False
    """The cancel came after the pick-up."""
    decided_seconds: float | None = None
    """From its arrival to the answer, all retries included."""
    confirm_seconds: float | None = None
    problem: str | None = None
    looked_at: float = 0.0

    @property
    def accepted(self) -> bool:
        """Whether the API promised to hold or deliver it."""
        return self.order_id is not None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.problem is not None or self.status in (*ENDS, "REJECTED", "INVALID")


@dataclass
class Shop:
    """Lets orders in at their times, whatever has become of those before (an open loop)."""

    api: Api
    orders: list[Order]
    chance: random.Random
    patience_seconds: float
    arrived: int = 0
    _began: float = field(default=0.0, init=False)

    async def open(self) -> None:
        """Let every order in and have each shopper do their part. What goes wrong is noted at the order."""
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for order in self.orders:
                await asyncio.sleep(self._began + order.arrives - time.monotonic())
                self.arrived += 1
                group.create_task(self._shop(order))

    async def _shop(self, order: Order) -> None:
        try:
            async with asyncio.timeout(self.patience_seconds):
                await self._order(order)
                if order.accepted:
                    await self._decide(order)
        except (GaveUp, Unexpected) as error:
            order.problem = str(error)
        except TimeoutError:
            order.problem = f"undecided after {self.patience_seconds:g} s"

    async def _order(self, order: Order) -> None:
        """Ask for the basket as it is; where that is refused for lines of quantity 0, without them."""
        body = self._body(order)
        answer = await self._post(order, body)
        if answer.status == 422:
            self._require_zero_lines(order, answer)
            order.zero_lines = True
            body["lines"] = [line for line in body["lines"] if line["quantity"] > 0]
            if not body["lines"]:
                order.status = "INVALID"
                return
            answer = await self._post(order, body)  # a 422 has not used up the key
            if answer.status == 422:
                raise Unexpected(f"POST /api/orders answered 422 {answer.slug} to a basket without such lines")
        order.decided_seconds = time.monotonic() - self._began - order.arrives
        if answer.status == 409:
            order.status = "REJECTED"
        else:
            order.order_id, order.status = answer.body["orderId"], answer.body["status"]
            order.looked_at = time.monotonic()

    @staticmethod
    def _require_zero_lines(order: Order, answer: Answer) -> None:
        if all(item.quantity > 0 for item in order.basket.items):
            raise Unexpected(f"POST /api/orders answered 422 {answer.slug} to a sound basket")

    async def _post(self, order: Order, body: dict[str, Any]) -> Answer:
        return await self.api.call("client", "POST", "/api/orders", body, key=order.key, expect=(200, 201, 409, 422))

    def _body(self, order: Order) -> dict[str, Any]:
        basket = order.basket
        zone = list(ZONES)[basket.store % len(ZONES)]
        hold = self.chance.randint(*_SHORT_HOLD_SECONDS) if order.fate is Fate.FORGET else _HOLD_SECONDS
        return {
            "customerId": basket.household,
            "zone": zone,
            "lines": [{"sku": item.sku, "quantity": item.quantity} for item in basket.items],
            "pickup": place(zone, random.Random(basket.store)),
            "dropoff": {**place(zone, random.Random(basket.household)), "address": f"Door of {basket.household}"},
            "holdSeconds": hold,
        }

    async def _decide(self, order: Order) -> None:
        """Pay, cancel, both, or neither."""
        if order.fate is Fate.FORGET:
            return
        await asyncio.sleep(self.chance.uniform(*_THINK_SECONDS))
        if order.fate is not Fate.CANCEL_HELD:
            asked = time.monotonic()
            await self._command(order, "confirm")
            order.confirm_seconds = time.monotonic() - asked
        if order.fate is Fate.CANCEL_PAID:
            await asyncio.sleep(self.chance.uniform(*_REGRET_SECONDS))
        if order.fate in (Fate.CANCEL_HELD, Fate.CANCEL_PAID):
            await self._command(order, "cancel")

    async def _command(self, order: Order, command: str) -> None:
        answer = await self.api.call("client", "POST", f"/api/orders/{order.order_id}/{command}", expect=(200, 409))
        if answer.status == 409:
            # Refusals that time explains; the order's end is read like everybody's.
            if answer.slug not in ("already-picked-up", "hold-expired"):
                raise Unexpected(f"{command} answered 409 {answer.slug}")
            order.picked_up_first = answer.slug == "already-picked-up"

    async def see_them_end(self, receiver: EventReceiver) -> None:
        """Read each accepted order until it has ended: when its last event came, and now and then anyway."""
        while waiting := [order for order in self.orders if not order.ended]:
            now = time.monotonic()
            for order in waiting:
                if not order.accepted:
                    continue
                if now - self._began - order.arrives > self.patience_seconds:
                    order.problem = f"still {order.status} after {self.patience_seconds:g} s"
                elif receiver.ended(order.order_id or "") or now - order.looked_at > _LOOK_AGAIN_SECONDS:
                    await self._look(order)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self, order: Order) -> None:
        try:
            answer = await self.api.call("client", "GET", f"/api/orders/{order.order_id}", patience_seconds=30)
        except GaveUp:
            return
        except Unexpected as error:
            order.problem = str(error)
            return
        order.looked_at = time.monotonic()
        order.status = answer.body["status"]
        order.confirmed = answer.body["deliveryId"] is not None
