"""What the views of operations read in a shop where nearly everything is over: only what is not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from db import retention
from db.engine import create_engine
from db.outbox import notifications
from db.outbox.write import write_events
from domain.outbox import EventType, order_event
from local.postgres import SUPERUSER, EmbeddedPostgres
from soak.past import SLICE, load
from soak.plans import GROWING, VIEWS, Scan, scans
from tests.servers import fresh_database


@pytest_asyncio.fixture(scope="module", name="old_shop")
async def _old_shop(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[AsyncEngine]:
    async with fresh_database(postgres, "old-shop", template) as url:
        await load(postgres.url("old-shop", role=SUPERUSER), SLICE)
        engine = create_engine(url, name="test")
        yield engine
        await engine.dispose()


@pytest.mark.parametrize("view", VIEWS)
async def test_no_view_reads_what_is_over(old_shop: AsyncEngine, view: str) -> None:
    found = await scans(old_shop, VIEWS[view])
    assert any(scan.table in GROWING for scan in found)
    assert [scan for scan in found if scan.reads_what_is_over] == []


@pytest.mark.parametrize("view", ["stuck", "metrics", "sweep"])
async def test_overdue_holds_are_found_by_their_deadline_among_all_that_are_held(
    old_shop: AsyncEngine, view: str
) -> None:
    found = [scan for scan in await scans(old_shop, VIEWS[view]) if scan.index == "reservations_active_by_deadline"]
    assert found
    assert [scan for scan in found if "expires_at <" not in (scan.condition or "")] == []


@pytest.mark.parametrize("view", ["metrics", "overview"])
async def test_deliveries_that_need_a_person_are_counted_by_an_index_of_them_alone(
    old_shop: AsyncEngine, view: str
) -> None:
    found = [scan for scan in await scans(old_shop, VIEWS[view]) if "NEEDS_ATTENTION" in scan.statement]
    counted = {scan.index for scan in found if scan.table == "deliveries"} - {None}
    assert "deliveries_needing_attention" in counted


async def test_whoever_writes_an_event_looks_the_address_up_by_the_orders_key(old_shop: AsyncEngine) -> None:
    async def write(connection: AsyncConnection) -> None:
        await notifications.switch_email(connection, on=True)
        await write_events(connection, [order_event(EventType.ORDER_CONFIRMED, "o-1", "o-1", {})])

    found = [scan for scan in await scans(old_shop, write) if scan.table == "orders"]
    assert {(scan.node, scan.index) for scan in found} == {("Index Scan", "orders_pkey")}
    assert {scan.condition is None for scan in found} == {False}


async def test_retention_reads_no_more_than_a_batch_and_what_hangs_on_it(old_shop: AsyncEngine) -> None:
    async def batch(connection: AsyncConnection) -> None:
        deleted = await retention.delete_events(connection, after=0, days=0, limit=500)
        assert deleted.deleted["outbox_events"] == 200
        for table in retention.OLD_ROWS:
            await retention.delete_old_rows(connection, table, days=30, limit=500)

    small = {"outbox_endpoints", "workers", "job_runs", "outbox_messages", "outbox_parked", "outbox_replays"}
    found = [scan for scan in await scans(old_shop, batch) if scan.table not in small]
    hang_on_it = {"outbox_finished", "outbox_attempts", "outbox_failures", "notifications"}
    assert {scan.table for scan in found} == {"outbox_events", *hang_on_it, "assignment_rounds", "snapshots"}
    assert [scan for scan in found if scan.index is None or scan.condition is None] == []
    assert [scan for scan in found if scan.table in hang_on_it and " = " not in (scan.condition or "")] == []


@pytest.mark.parametrize(
    ("table", "node", "index", "condition", "over"),
    [
        ("reservations", "Seq Scan", None, None, True),
        ("reservations", "Index Scan", "reservations_pkey", "(reservation_id > 7)", True),
        ("reservations", "Index Only Scan", "reservations_order_id_sku_key", None, True),
        ("reservations", "Index Scan", "reservations_order_id_sku_key", "(order_id = 'o-1'::text)", False),
        ("reservations", "Index Only Scan", "reservations_active_by_sku", None, False),
        ("orders", "Index Only Scan", "orders_pkey", None, True),
        ("orders", "Index Scan", "orders_pkey", "(order_id > 'o-1'::text)", True),
        ("orders", "Index Only Scan", "orders_newest_by_status", "(status = 'CONFIRMED'::text)", False),
        ("outbox_finished", "Seq Scan", None, None, True),
        ("outbox_messages", "Seq Scan", None, None, False),
    ],
)
def test_what_counts_as_reading_what_is_over(
    table: str, node: str, index: str | None, condition: str | None, over: bool
) -> None:
    assert Scan("SELECT", table, node, index, condition).reads_what_is_over is over
