"""A webhook receiver that remembers every event by its order, and knows what story an order may tell."""

from __future__ import annotations

import hmac
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Self

from aiohttp import web

from domain.outbox import webhook_signature

# Before an event of the left, one of the right was the last or came earlier (see `order_broken`).
_NEEDS = {
    "order.confirmed": "order.reserved",
    "order.expired": "order.reserved",
    "order.cancelled": "order.reserved",
    "delivery.requested": "order.confirmed",
    "delivery.offered": "delivery.requested",
    "delivery.assigned": "delivery.requested",
    "delivery.picked_up": "delivery.assigned",
    "delivery.late": "delivery.requested",
    "delivery.cancelled": "order.cancelled",
    "order.delivered": "delivery.picked_up",
}
_NEVER_AFTER = {
    "order.expired": {"order.confirmed"},
    "order.cancelled": {"delivery.picked_up"},
    "delivery.assigned": {"delivery.picked_up"},
}
_LAST = {"order.expired", "order.cancelled", "order.delivered"}
_TO_THE_DOOR = ["order.reserved", "order.confirmed", "delivery.requested"]
_STORIES = {
    ("EXPIRED", False): {"order.reserved", "order.expired"},
    ("CANCELLED", False): {"order.reserved", "order.cancelled"},
    ("CANCELLED", True): {*_TO_THE_DOOR, "order.cancelled", "delivery.cancelled"},
    ("DELIVERED", True): {*_TO_THE_DOOR, "delivery.assigned", "delivery.picked_up", "order.delivered"},
}


@dataclass(frozen=True)
class Seen:
    """An event as it came in for the first time."""

    type: str
    time: str


class EventReceiver:
    """Listens on a free loopback port; refuses what is not signed with the secret."""

    def __init__(self) -> None:
        self.lanes: dict[str, list[Seen]] = defaultdict(list)
        """By order id, in order of arrival."""
        self.received = 0
        self.duplicates = 0
        self.forged = 0
        self.secret: str | None = None
        self._ids: set[str] = set()
        app = web.Application()
        app.router.add_post("/events", self._receive)
        self._runner = web.AppRunner(app, access_log=None)

    async def __aenter__(self) -> Self:
        """Listen."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/events"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.secret is None:  # the answer that tells it is under way
            return web.Response(status=503)
        if not _genuine(self.secret, request, body):
            self.forged += 1
            return web.Response(status=401)
        event_id = request.headers["webhook-id"]
        self.received += 1
        if event_id in self._ids:
            self.duplicates += 1
            return web.Response(status=204)
        self._ids.add(event_id)
        event = json.loads(body)
        if order_id := event["data"].get("orderId"):
            self.lanes[order_id].append(Seen(event["type"].removeprefix("waybill."), event["time"]))
        return web.Response(status=204)

    def ended(self, order_id: str) -> bool:
        """Whether the order's last event came."""
        return any(seen.type in _LAST for seen in self.lanes.get(order_id, ()))

    def missing(self, order_id: str, status: str, *, confirmed: bool) -> set[str]:
        """What an order that ended so must have told, and has not yet."""
        return _STORIES[status, confirmed] - {seen.type for seen in self.lanes.get(order_id, ())}


def _genuine(secret: str, request: web.Request, body: bytes) -> bool:
    """Check the signature as the Standard Webhooks specification says."""
    event_id, timestamp = request.headers.get("webhook-id", ""), request.headers.get("webhook-timestamp", "")
    if not timestamp.isdigit():
        return False
    expected = webhook_signature(secret, event_id, int(timestamp), body)
    given = request.headers.get("webhook-signature", "").split()
    return any(hmac.compare_digest(expected, each) for each in given)


def order_broken(lane: list[Seen]) -> str | None:
    """What is wrong with the order in which an order's events came; None when nothing is."""
    before: list[str] = []
    time = ""
    for seen in lane:
        needed = _NEEDS.get(seen.type)
        if needed is None and before:
            return f"{seen.type} came after {before[-1]}"
        if needed is not None and needed not in before:
            return f"{seen.type} came before {needed}"
        if too_late := _NEVER_AFTER.get(seen.type, set()) & set(before):
            return f"{seen.type} came after {min(too_late)}"
        if before and before[-1] in _LAST and seen.type != "delivery.cancelled":
            return f"{seen.type} came after {before[-1]}"
        if seen.time < time:
            return f"{seen.type} is older than {before[-1]}, which came before it"
        before.append(seen.type)
        time = seen.time
    return None
