"""Events over HTTP: bare aiohttp without a database, and the latency of an outbox at rest."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import aiohttp

from bench.outbox_processes import Helper
from bench.outbox_relay import Drained, relays
from bench.outbox_server import event, opened
from db.outbox.write import write_events
from domain.outbox import (
    CLOUDEVENTS_CONTENT_TYPE,
    Endpoint,
    Message,
    SinkKind,
    cloud_event,
    new_webhook_secret,
    webhook_signature,
)
from sinks.webhook import TIMEOUT_SECONDS, WebhookSink

Request = tuple[bytes, dict[str, str]]


def signed(event_id: str, body: bytes, secret: str) -> dict[str, str]:
    """The headers that the webhook sink sends."""
    timestamp = int(time.time())
    return {
        "content-type": CLOUDEVENTS_CONTENT_TYPE,
        "user-agent": "Waybill",
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": webhook_signature(secret, event_id, timestamp, body),
    }


def bodies(count: int) -> Iterator[tuple[str, bytes]]:
    """So many events as CloudEvents, with their ids."""
    now = datetime.now(UTC)
    for number in range(count):
        each = event(number)
        yield each.event_id, cloud_event(each.event_id, each.event_type, each.subject, now, json.dumps(each.data))


def client_session(connections: int) -> aiohttp.ClientSession:
    """An HTTP client set up as the webhook sink's, which may open so many connections."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


async def post_bare(url: str, count: int, *, sends: int) -> Drained:
    """POST so many events that are signed beforehand, so many at a time: the limit of this client on this machine."""
    secret = new_webhook_secret()
    requests = iter([(body, signed(event_id, body, secret)) for event_id, body in bodies(count)])

    async def send(session: aiohttp.ClientSession) -> None:
        for body, headers in requests:
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                assert response.status == 204

    async with client_session(sends) as session:
        began = time.perf_counter()
        await asyncio.gather(*(send(session) for _ in range(sends)))
        return Drained(count, time.perf_counter() - began)


async def post_by_sink(url: str, count: int, *, sends: int) -> Drained:
    """Have the webhook sink send so many events, so many at a time: what a relay would do if it had no database."""
    now = datetime.now(UTC)
    endpoint = Endpoint(1, "shop", SinkKind.WEBHOOK, url, (new_webhook_secret(),), 0, probing=False)
    messages = iter(
        [
            Message(0, number, number, e.lane, e.event_id, e.event_type, e.subject, json.dumps(e.data), now, 0, 0.0)
            for number, e in enumerate(map(event, range(count)))
        ]
    )
    sink = WebhookSink(allow_private=True)

    async def send() -> None:
        for message in messages:
            await sink.send(endpoint, message)

    try:
        began = time.perf_counter()
        await asyncio.gather(*(send() for _ in range(sends)))
        return Drained(count, time.perf_counter() - began)
    finally:
        await sink.close()


@dataclass(frozen=True)
class Latency:
    """From the commit of an event to its arrival at the receiver."""

    milliseconds: list[float]

    def percentile(self, percent: int) -> float:
        """The latency that so many percent of the events do not exceed."""
        return statistics.quantiles(self.milliseconds, n=100, method="inclusive")[percent - 1]


async def latency_at_rest(url: str, receiver: Helper, count: int, seed: int) -> Latency:
    """Commit so many events, one at a time, at random moments some 50 ms apart, in a database where nothing waits."""
    chance = random.Random(seed)
    committed: dict[str, float] = {}
    sink = WebhookSink(allow_private=True)
    try:
        async with opened(url) as database, opened(url) as writing, relays(database, sink):
            await asyncio.sleep(1.0)  # the relays come to rest
            await receiver.ask()
            for number in range(count):
                await asyncio.sleep(chance.uniform(0.025, 0.075))
                each = event(number)
                await writing.transact(partial(write_events, events=[each]))
                committed[each.event_id] = time.monotonic()
            await asyncio.sleep(1.0)
    finally:
        await sink.close()
    arrived = dict((await receiver.ask())["arrived"])
    assert arrived.keys() == committed.keys(), "every event arrives"
    return Latency([1000 * (arrived[event_id] - at) for event_id, at in committed.items()])
