"""The outbox beside its raw limit, bare HTTP and two other libraries, interleaved on one throw-away PostgreSQL.

`python -m bench.outbox --quick`; `--only limit --only http` for a part of it. What is compared takes turns in the same
database server, so that what disturbs the machine disturbs both.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from sqlalchemy import text

from bench.outbox_counts import Cost, cost_of_an_event
from bench.outbox_http import Latency, latency_at_rest, post_bare, post_by_sink
from bench.outbox_processes import Helper, helper
from bench.outbox_raw import drain_raw
from bench.outbox_relay import Drained, drain, drain_to_nowhere, in_order, settled_batches
from bench.outbox_report import Report
from bench.outbox_server import ENDPOINT, LANES, Server, make_webhook, throw_away_postgres, write
from db.engine import Database
from domain.outbox import EventType
from local.postgres import EmbeddedPostgres
from sinks.webhook import WebhookSink
from worker import collect_garbage_seldom

PARTS = ("limit", "http", "rivals", "cost", "rest", "broken")


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    pairs: int
    events: int
    """For the relay to a sink that does nothing, and the raw limit."""
    http_events: int
    faststream_events: int
    procrastinate_events: int
    rest_events: int
    waiting: int
    """Messages of the endpoint whose breaker is open."""
    beside_events: int
    """Messages of the other endpoint meanwhile."""


# Seconds each: opening connections and preparing statements there, some 0.1 s, hardly counts.
FULL = Sizes(5, 200_000, 50_000, 50_000, 1_000, 300, 100_000, 100_000)
QUICK = Sizes(1, 50_000, 10_000, 10_000, 300, 100, 100_000, 30_000)


@dataclass
class Bench:
    """One run. Rates are kept by name, one for each pair."""

    server: Server
    receiver: Helper
    sizes: Sizes
    parts: Sequence[str]
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """Microseconds an event, of this process and of PostgreSQL: steadier than a rate where others use the machine."""
    cost: Cost | None = None
    latency: Latency | None = None
    _batches: Mapping[int, Sequence[int]] = field(default_factory=dict)
    _sends: int = 0
    """At one moment: as many as the relay has connections."""

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self.receiver.port}/"

    async def run(self) -> None:
        """Fill the templates, then measure what is asked for in turns."""
        await self._fill()
        turns = [turn for part, turn in self._turns() if part in self.parts]
        for pair in range(self.sizes.pairs):
            say(f"pair {pair + 1} of {self.sizes.pairs}")
            for first, second in turns:
                # The other one first every other time; the first time, what the relay did is what the others repeat.
                for measure in (first, second) if pair % 2 == 0 else (second, first):
                    await measure()
        if "cost" in self.parts:
            say("cost of an event")
            async with self.server.copy("waiting") as url:
                self.cost = await cost_of_an_event(url, self.sizes.events)
        if "rest" in self.parts:
            say("at rest")
            async with self.server.copy("empty") as url:
                self.latency = await latency_at_rest(url, self.receiver, self.sizes.rest_events, seed=1)

    def _turns(self) -> list[tuple[str, tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]]]]:
        return [
            ("limit", (self._relay, self._raw)),
            ("rivals", (self._faststream, self._procrastinate)),
            ("http", (self._relay_http, self._bare_http)),
            ("http", (self._sink_http, _nothing)),
            ("rivals", (self._faststream_http, _nothing)),
            ("broken", (self._with_waiting, self._without_waiting)),
        ]

    async def _fill(self) -> None:
        say("events are written")

        async def empty(database: Database) -> None:
            await make_webhook(database, self._url)

        async def waiting(database: Database) -> None:
            await empty(database)
            await write(database, self.sizes.events)

        async def waiting_http(database: Database) -> None:
            await empty(database)
            await write(database, self.sizes.http_events)

        await self.server.template("empty", empty)
        await self.server.template("waiting", waiting)
        await self.server.template("waiting-http", waiting_http)
        if "broken" in self.parts:
            await self.server.template("broken", self._broken)
            await self.server.template("unbroken", self._unbroken)

    # --- to a sink that does nothing

    async def _relay(self) -> None:
        async with self.server.copy("waiting") as url:
            await self._metered("relay", drain_to_nowhere(url, self.sizes.events))
            self._batches = await settled_batches(url)

    async def _raw(self) -> None:
        async with self.server.copy("waiting") as url:
            await self._metered("raw", drain_raw(url, self._batches, ENDPOINT))

    # The rivals are imported where they are measured: only `make bench` installs them.

    async def _faststream(self) -> None:
        from bench.outbox_rivals import faststream_no_op

        async with self.server.copy() as url:
            self.rates["faststream"].append((await faststream_no_op(url, self.sizes.faststream_events)).rate)

    async def _procrastinate(self) -> None:
        from bench.outbox_rivals import procrastinate_no_op

        async with self.server.copy() as url:
            self.rates["procrastinate"].append((await procrastinate_no_op(url, self.sizes.procrastinate_events)).rate)

    # --- over HTTP

    async def _relay_http(self) -> None:
        sink = WebhookSink(allow_private=True)
        try:
            async with self.server.copy("waiting-http") as url:
                await self._metered("relay http", drain(url, sink, self.sizes.http_events))
                seen = await self._received(self.sizes.http_events)
                assert await in_order(url, [event_id for event_id, _ in seen["arrived"]]), "each lane in order"
        finally:
            await sink.close()
        self._sends = seen["connections"]

    async def _bare_http(self) -> None:
        await self._metered("bare http", post_bare(self._url, self.sizes.http_events, sends=self._sends))
        await self._received(self.sizes.http_events)

    async def _sink_http(self) -> None:
        await self._metered("sink http", post_by_sink(self._url, self.sizes.http_events, sends=self._sends))
        await self._received(self.sizes.http_events)

    async def _faststream_http(self) -> None:
        from bench.outbox_rivals import faststream_http

        async with self.server.copy() as url:
            drained = await faststream_http(url, self.sizes.http_events, self._url)
        await self._received(self.sizes.http_events)
        self.rates["faststream http"].append(drained.rate)

    async def _received(self, count: int) -> Any:
        """What the receiver has seen since the last time: so many requests, over how many connections."""
        seen = await self.receiver.ask()
        assert len(seen["arrived"]) == count, "each event is sent once"
        return seen

    # --- beside an endpoint that is down

    async def _broken(self, database: Database) -> None:
        await make_webhook(database, self._url, [EventType.INVENTORY_ADJUSTED], name="broken")
        await self._fill_beside(database)

    async def _unbroken(self, database: Database) -> None:
        await make_webhook(database, self._url, [], name="broken")  # the same events, and no messages of them
        await self._fill_beside(database)

    async def _fill_beside(self, database: Database) -> None:
        await make_webhook(database, self._url, [EventType.ORDER_CONFIRMED])
        await write(database, self.sizes.waiting, EventType.INVENTORY_ADJUSTED)
        await write(database, self.sizes.beside_events, EventType.ORDER_CONFIRMED)
        open_breaker = text("UPDATE outbox_endpoints SET open_until = now() + interval '1 day' WHERE name = 'broken'")
        await database.transact(lambda connection: connection.execute(open_breaker))

    async def _with_waiting(self) -> None:
        await self._beside("with waiting", "broken")

    async def _without_waiting(self) -> None:
        await self._beside("without waiting", "unbroken")

    async def _beside(self, name: str, template: str) -> None:
        async with self.server.copy(template) as url:
            await self._metered(name, drain_to_nowhere(url, self.sizes.beside_events))

    async def _metered(self, name: str, work: Awaitable[Drained]) -> None:
        here, there = time.process_time(), self.server.cpu_seconds()
        drained = await work
        here, there = time.process_time() - here, self.server.cpu_seconds() - there
        self.rates[name].append(drained.rate)
        self.cpu[name].append((1e6 * here / drained.count, 1e6 * there / drained.count))


async def _nothing() -> None:
    pass


def say(what: str) -> None:
    """Tell how far it is."""
    print(what, file=sys.stderr, flush=True)


def report(bench: Bench) -> Report:
    """The figures and their targets."""
    rates, cpu, table = bench.rates, bench.cpu, Report()
    relay, http = rates["relay"], rates["relay http"]
    table.rate("relay to a sink that does nothing", relay, cpu["relay"])
    table.rate("raw limit: the same batches, bare asyncpg", rates["raw"], cpu["raw"])
    table.rate("faststream-outbox, no-op handler", rates["faststream"])
    table.rate("procrastinate, no-op task", rates["procrastinate"])
    table.ratio("relay / raw limit", relay, rates["raw"], 0.40)
    table.ratio("relay / faststream-outbox", relay, rates["faststream"], 8.0)
    table.rate("relay over HTTP, each lane in order", http, cpu["relay http"])
    table.rate("bare aiohttp, signed beforehand, no database", rates["bare http"], cpu["bare http"])
    table.rate("the webhook sink without a database", rates["sink http"], cpu["sink http"])
    table.rate("faststream-outbox over HTTP, in no order", rates["faststream http"])
    table.ratio("relay / bare aiohttp", http, rates["bare http"], 0.8)
    table.ratio("relay / webhook sink without a database", http, rates["sink http"])
    table.ratio("relay / faststream-outbox over HTTP", http, rates["faststream http"], 1.5)
    if bench.cost is not None:
        table.at_most("SQL round trips an event", bench.cost.round_trips, 0.05)
        for kind, number in sorted(bench.cost.kinds.items(), key=lambda item: -item[1]):
            table.note(f"  {kind}", f"{number:.4f}")
        table.at_most("dead tuples an event (deletes, updates that are not HOT)", bench.cost.dead_tuples, 1.1)
        table.note("  pruned without vacuum (HOT updates)", f"{bench.cost.pruned_tuples:.4f}")
    if bench.latency is not None:
        table.at_most("at rest, commit to receiver, p50", bench.latency.percentile(50), 8, " ms")
        table.at_most("at rest, commit to receiver, p99", bench.latency.percentile(99), 30, " ms")
    waiting = f"{bench.sizes.waiting:,} waiting at an open breaker"
    table.rate(f"other endpoint with {waiting}", rates["with waiting"], cpu["with waiting"])
    table.rate("other endpoint without them", rates["without waiting"], cpu["without waiting"])
    table.ratio("with / without them", rates["with waiting"], rates["without waiting"], 0.9)
    return table


async def measure(postgres: EmbeddedPostgres, sizes: Sizes, parts: Sequence[str]) -> Bench:
    """Run on this server, which is to be thrown away afterwards."""
    async with helper("bench.outbox_receiver") as receiver:
        bench = Bench(Server(postgres), receiver, sizes, parts)
        await bench.run()
    return bench


def main() -> None:
    """Measure as the command line says, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.outbox", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about a minute: one pair, fewer events")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--events", type=int, help="for the relay to a sink that does nothing and the raw limit")
    parser.add_argument("--only", choices=PARTS, action="append", help="may be repeated")
    asked = parser.parse_args()
    sizes = QUICK if asked.quick else FULL
    sizes = replace(sizes, pairs=asked.pairs or sizes.pairs, events=asked.events or sizes.events)
    logging.basicConfig(level=logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    collect_garbage_seldom()  # as a worker does; what it is compared with has the same of it
    began = time.perf_counter()
    with throw_away_postgres() as postgres:
        bench = asyncio.run(measure(postgres, sizes, asked.only or PARTS))
    seconds = time.perf_counter() - began
    report(bench).print(
        f"Outbox: medians of {sizes.pairs} pairs, {sizes.events:,} events in {LANES} lanes, "
        f"{sizes.http_events:,} over HTTP; {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
