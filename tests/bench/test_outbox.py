"""A slice of `make bench`: what it runs is right; how fast it is, is not asked here."""

from __future__ import annotations

from dataclasses import replace

import asyncpg

from bench.outbox import PARTS, QUICK, measure, report
from bench.outbox_processes import helper
from bench.outbox_report import Report
from local.postgres import EmbeddedPostgres

SLICE = replace(QUICK, pairs=2, events=3_000, http_events=400, rest_events=10, waiting=2_000, beside_events=1_000)


async def test_the_benchmark_carries_every_event_once_and_in_order_and_shows_each_figure(
    postgres: EmbeddedPostgres,
) -> None:
    parts = [part for part in PARTS if part != "rivals"]  # they are not installed for tests
    bench = await measure(postgres, SLICE, parts)
    for name in ("relay", "raw", "relay http", "bare http", "sink http", "with waiting", "without waiting"):
        assert len(bench.rates[name]) == 2, name
    assert bench.latency is not None
    assert len(bench.latency.milliseconds) == 10
    assert bench.cost is not None
    assert 1.0 <= bench.cost.dead_tuples < 1.1, "a message is inserted and deleted, never updated"
    shown = {row.what: row.met for row in report(bench).rows}
    assert sum(met is not None for met in shown.values()) == 7


async def test_every_round_trip_to_postgresql_is_counted_whatever_it_is_for(postgres: EmbeddedPostgres) -> None:
    async with helper("bench.outbox_wire", "127.0.0.1", str(postgres.port)) as wire:
        url = postgres.url().replace(f":{postgres.port}/", f":{wire.port}/")
        connection = await asyncpg.connect(url, ssl=False)
        before = await wire.ask()
        async with connection.transaction():
            await connection.fetchval("SELECT 1")
            await connection.fetchval("SELECT 1")
        after = await wire.ask()
        await connection.close()
    counted = {kind: number - before["kinds"].get(kind, 0) for kind, number in after["kinds"].items()}
    assert {kind: number for kind, number in counted.items() if number} == {
        "BEGIN": 1,
        "COMMIT": 1,
        "prepare": 1,
        "execute": 2,
    }
    assert after["round_trips"] - before["round_trips"] == 5


def test_a_ratio_is_the_median_of_the_pairs_and_says_whether_the_target_is_met() -> None:
    table = Report()
    table.ratio("a / b", [10.0, 10.0, 30.0], [20.0, 40.0, 10.0], 0.5)
    table.ratio("a / c", [10.0], [40.0], 0.5)
    assert [(row.figure, row.met) for row in table.rows] == [("0.50", True), ("0.25", False)]
