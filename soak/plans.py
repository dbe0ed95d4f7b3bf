"""What the views of operations read: the plans of their statements, and their times, in a shop with a long past.

`python -m soak.plans`: 100,000 products, 1,000,000 reservations of which 95% are closed, 1,000,000 past events.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from db import cross_check, ops, samples
from db import order as orders
from db.assignment import zones
from db.engine import create_engine
from db.inventory import drift, holds
from db.migrations import migrate
from db.outbox import failures, replays, retries
from db.overview import read_overview
from db.schema import metadata
from domain.outbox import MessageStatus, ReplayAction
from local.postgres import SUPERUSER
from soak.past import FULL, load
from tests.servers import fresh_database, throw_away_postgres

GRACE_SECONDS = 5
_SWEPT_AT_ONCE = 200

GROWING = {
    "orders",
    "reservations",
    "deliveries",
    "assignments",
    "stock_ledger",
    "outbox_events",
    "outbox_finished",
    "outbox_failures",
    "outbox_attempts",
    "notifications",
    "admin_actions",
}
"""Tables that keep what is over."""

OPEN_INDEXES = {
    str(index.name)
    for table in metadata.sorted_tables
    for index in table.indexes
    if index.dialect_options["postgresql"]["where"] is not None
}
"""Indexes of what is open alone."""


# --- the views


async def _stuck(connection: AsyncConnection) -> None:
    page = await holds.stuck_reservations(connection, GRACE_SECONDS, None, 50)
    after = page[-1].expires_at, page[-1].reservation_id
    await holds.stuck_reservations(connection, GRACE_SECONDS, after, 50)


async def _metrics(connection: AsyncConnection) -> None:
    await ops.read_metrics(connection, GRACE_SECONDS)
    await drift.drift_totals(connection)


async def _drift(connection: AsyncConnection) -> None:
    await drift.drifted_products(connection)
    await drift.active_reservations(connection, ["sku-0", "sku-1", "sku-2"])


async def _sweep(connection: AsyncConnection) -> None:
    overdue = await holds.overdue_orders(connection, GRACE_SECONDS, _SWEPT_AT_ONCE)
    await orders.expire(connection, overdue[0], outside=True)


async def _reconcile(connection: AsyncConnection) -> None:
    await drift.begin_reconciliation(connection, "soak", dry_run=True, skus=None, actor="soak", reason="soak")
    found = await drift.get_reconciliation(connection, "soak")
    assert found is not None
    await drift.drifted_skus(connection, None, "", 100)
    await drift.drifted_skus(connection, ["sku-0", "sku-1", "sku-2"], "", 100)
    await drift.reconcile_product(connection, found[0], "sku-0")


async def _cross_check(connection: AsyncConnection) -> None:
    open_orders = [order_id async for order_id, _ in cross_check.open_orders(connection)]
    await cross_check.stages(connection, open_orders[:20])
    await cross_check.retrying_messages(connection)
    await cross_check.waiting_zones(connection)


async def _invariants(connection: AsyncConnection) -> None:
    await ops.check_invariants(connection)


async def _failures(connection: AsyncConnection) -> None:
    page = await failures.list_failures(connection, MessageStatus.FAILED, {}, None, 50)
    groups = await failures.list_groups(connection, MessageStatus.FAILED, None, 50)
    await failures.list_groups(connection, MessageStatus.FAILED, (groups[0].last_failed_at, groups[0].fingerprint), 50)
    await failures.get_event(connection, page[0].event_id)
    await retries.without_workflow(connection, shard=0, limit=50)


async def _replays(connection: AsyncConnection) -> None:
    anything = dict.fromkeys(("event_type", "error_class", "sink", "fingerprint"))
    await replays.begin(connection, "soak", ReplayAction.REPLAY, anything, dry_run=False, actor="soak", reason="soak")
    await replays.advance(connection, "soak", 20)
    await replays.get(connection, "soak")


async def _overview(connection: AsyncConnection) -> None:
    await samples.take_sample(connection, GRACE_SECONDS)
    await read_overview(connection, GRACE_SECONDS)


async def _zones(connection: AsyncConnection) -> None:
    await zones.list_zones(connection, "", 50)


VIEWS: Mapping[str, Callable[[AsyncConnection], Awaitable[None]]] = {
    "stuck": _stuck,
    "metrics": _metrics,
    "drift": _drift,
    "sweep": _sweep,
    "reconcile": _reconcile,
    "cross-check": _cross_check,
    "invariants": _invariants,
    "failures": _failures,
    "replays": _replays,
    "overview": _overview,
    "zones": _zones,
}
"""What is asked often: each calls the functions of `db` as the floors above do, so that the plans follow the code."""


# --- their statements and plans


@dataclass(frozen=True)
class Scan:
    """How a plan reads a table."""

    statement: str
    table: str
    node: str
    index: str | None
    condition: str | None

    @property
    def reads_what_is_over(self) -> bool:
        """Whether it reads rows of the past: anything but an index of what is open, or a look-up of named rows."""
        if self.table not in GROWING or self.index in OPEN_INDEXES:
            return False
        if self.index is None or " = " not in (self.condition or ""):
            return True
        # Of a hold only its order's own lines, else what is ACTIVE.
        return self.table == "reservations" and not str(self.condition).startswith("(order_id = ")


Statement = tuple[str, tuple[Any, ...]]


@contextmanager
def _recorded(engine: AsyncEngine) -> Iterator[list[Statement]]:
    """The statements that the block sends, with their parameters, as PostgreSQL gets them."""
    statements: list[Statement] = []

    def record(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        statements.append((statement, tuple(parameters)))

    event.listen(engine.sync_engine, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", record)


async def scans(engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[None]]) -> list[Scan]:
    """How its statements read tables, planned for their values and as the generic plans of a warm connection."""
    found: list[Scan] = []
    async with engine.connect() as connection:
        with _recorded(engine) as statements:
            await work(connection)
        await connection.rollback()
        await connection.exec_driver_sql("SET plan_cache_mode = force_generic_plan")
        for statement, parameters in statements:
            await connection.exec_driver_sql(f"PREPARE generic AS {statement}")
            nothing = f"({', '.join(['NULL'] * len(parameters))})" if parameters else ""
            for explained, values in ((statement, parameters), (f"EXECUTE generic{nothing}", ())):
                answer = (await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {explained}", values)).scalar_one()
                [plan] = json.loads(answer) if isinstance(answer, str) else answer
                found += _nodes(plan["Plan"], statement)
            await connection.exec_driver_sql("DEALLOCATE generic")
        await connection.rollback()
    return found


def _nodes(node: Mapping[str, Any], statement: str, table: str | None = None) -> Iterator[Scan]:
    table = node.get("Relation Name", table)
    kind = node["Node Type"]
    if table is not None and "Scan" in kind and kind != "Bitmap Heap Scan":
        yield Scan(statement.strip(), table, kind, node.get("Index Name"), node.get("Index Cond"))
    for child in node.get("Plans", []):
        # Only a bitmap's indexes belong to the table of the node above them.
        inherited = table if kind in ("Bitmap Heap Scan", "BitmapAnd", "BitmapOr") else None
        yield from _nodes(child, statement, inherited)


# --- their times


async def milliseconds(engine: AsyncEngine, view: str, times: int = 9) -> float:
    """The view's median time on a warm connection; what it changed is undone."""
    taken = []
    async with engine.connect() as connection:
        for _ in range(times):
            began = time.perf_counter()
            await VIEWS[view](connection)
            taken.append((time.perf_counter() - began) * 1000)
            await connection.rollback()
    return statistics.median(taken)


async def main() -> None:
    """Load the full past, print the times and fail on a plan that reads what is over."""
    with throw_away_postgres() as postgres:
        async with fresh_database(postgres, "soak") as url:
            await asyncio.to_thread(migrate, url, "soak")
            began = time.monotonic()
            await load(postgres.url("soak", role=SUPERUSER), FULL)
            seconds = time.monotonic() - began
            print(f"Loaded in {seconds:.0f} s: {FULL.products:,} products, {FULL.events:,} past events,")
            print(f"{2 * FULL.orders:,} reservations, 95% of them closed. Median time of a view, and what it reads:")
            engine = create_engine(url, name="soak")
            try:
                bad = []
                for view in VIEWS:
                    found = [scan for scan in await scans(engine, VIEWS[view]) if scan.reads_what_is_over]
                    bad += found
                    reads = "what is over" if found else "only what is open"
                    print(f"{view:<12}{await milliseconds(engine, view):8.1f} ms   {reads}")
                for scan in dict.fromkeys(bad):
                    print(f"\n{scan.node} on {scan.table}:\n{scan.statement}")
                assert not bad, f"{len(bad)} scans read what is over"
            finally:
                await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
