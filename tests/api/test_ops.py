"""Metrics, invariants, the audit and health."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from temporalio.client import Client

from tests.houses import House, open_house

# The contract's names, and those that it allows beside them, as Prometheus shows them.
NAMES = {
    "ops_outbox_backlog_size",
    "ops_outbox_oldest_pending_seconds",
    "ops_outbox_failed_events",
    "ops_outbox_retry_attempts_sum",
    "ops_outbox_dispatched_total",
    "ops_outbox_dispatch_errors_total",
    "ops_outbox_failed_transitions_total",
    "ops_outbox_endpoint_open",
    "ops_database_oldest_xmin_age_seconds",
    "ops_inventory_reservations",
    "ops_inventory_stuck_reservations",
    "ops_inventory_reserved_stock_drift_products",
    "ops_inventory_reserved_stock_drift_qty_total",
    "ops_assignment_needs_attention_deliveries",
    "ops_assignment_pending_deliveries",
    "ops_orders",
    "ops_invariant_violations",
    "process_uptime_seconds",
}


async def test_every_metric_of_the_contract_is_served(quiet_house: House) -> None:
    await quiet_house.webhook("shop", "http://127.0.0.1:9/")
    answer = await quiet_house.call("GET", "/api/admin/ops/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    assert {sample.name for family in families for sample in family.samples} >= NAMES


async def test_a_mail_server_that_is_down_shows_as_an_open_endpoint(quiet_house: House) -> None:
    email = 'ops_outbox_endpoint_open{endpoint="email"}'
    assert await quiet_house.metric(email) == 0
    await quiet_house.sql("UPDATE outbox_endpoints SET open_until = now() WHERE kind = 'email'")
    assert await quiet_house.metric(email) == 1


async def test_metrics_that_take_too_long_are_a_clear_503_while_prometheus_still_listens(quiet_house: House) -> None:
    await quiet_house.sql("ALTER TABLE conflict_counts RENAME TO kept")
    await quiet_house.sql(
        "CREATE VIEW conflict_counts AS SELECT source, kind, total FROM kept"
        " UNION ALL SELECT 'auto', 'capacity', CAST(0 AS bigint) FROM pg_sleep(15)"
    )
    patience = {"X-Prometheus-Scrape-Timeout-Seconds": "0.7"}
    answer = await quiet_house.call("GET", "/api/admin/ops/metrics", headers=patience)
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/metrics-unavailable")
    assert answer.headers["retry-after"]


async def test_counts_by_status_follow_the_orders(house: House) -> None:
    await house.product("tea", 5)
    kept = await house.reserved("k-1", {"tea": 1})
    given_back = await house.reserved("k-2", {"tea": 1})
    await house.order("k-3", {"tea": 9})
    await house.call("POST", f"/api/orders/{kept}/confirm")
    await house.call("POST", f"/api/orders/{given_back}/cancel")
    for status, count in {"RESERVED": 0, "CONFIRMED": 1, "CANCELLED": 1, "REJECTED": 1}.items():
        assert await house.metric(f'ops_orders{{status="{status}"}}') == count
    assert await house.metric('ops_inventory_reservations{status="COMMITTED"}') == 1
    assert await house.metric('ops_inventory_reservations{status="RELEASED"}') == 1
    assert await house.metric("ops_assignment_pending_deliveries") == 1


async def test_a_broken_promise_is_named_with_a_sample(quiet_house: House) -> None:
    await quiet_house.product("tea", 5)
    await quiet_house.sql("UPDATE products SET reserved = 3")
    invariants = await quiet_house.get("/api/admin/ops/invariants")
    broken = [check for check in invariants["checks"] if not check["ok"]]
    assert not invariants["ok"]
    assert [(check["name"], check["violations"], check["sample"]) for check in broken] == [
        ("reserved_matches_active_reservations", 1, ["tea"])
    ]
    assert await quiet_house.metric('ops_invariant_violations{invariant="reserved_matches_active_reservations"}') == 1


async def test_a_message_ready_for_long_at_a_reachable_sink_breaks_a_promise(
    database_url: str, client: Client, installation: str
) -> None:
    async with open_house(database_url, client, installation, worker=False) as house:
        await house.webhook("shop", "http://127.0.0.1:9/")
        await house.product("tea", 5)
        assert (await house.get("/api/admin/ops/invariants"))["ok"]
        await house.sql("UPDATE outbox_messages SET ready_at = now() - interval '6 minutes'")
        assert (await house.get("/api/admin/ops/invariants"))["ok"]  # its sink has only just become reachable
        await house.sql("UPDATE outbox_endpoints SET reachable_since = now() - interval '6 minutes'")
        assert not (await house.get("/api/admin/ops/invariants"))["ok"]
        assert await house.metric("ops_outbox_oldest_pending_seconds") >= 360
        await house.sql("UPDATE outbox_endpoints SET open_until = now() + interval '1 minute'")
        assert (await house.get("/api/admin/ops/invariants"))["ok"]


async def test_actions_are_listed_newest_first_page_by_page(quiet_house: House) -> None:
    for number in range(3):
        await quiet_house.product(f"sku-{number}", 1)
    page = await quiet_house.get("/api/admin/ops/actions?limit=2")
    rest = await quiet_house.get(f"/api/admin/ops/actions?limit=2&cursor={page['nextCursor']}")
    targets = [each["target"] for each in page["items"] + rest["items"]]
    assert targets == ["product:sku-2", "product:sku-1", "product:sku-0"]
    assert page["items"][0].keys() == {"at", "actor", "action", "target", "reason", "before", "after"}


async def test_health_and_readiness_need_no_token(quiet_house: House) -> None:
    for path in ("/healthz", "/readyz"):
        answer = await quiet_house.http.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_readiness_can_be_scraped(database_url: str, client: Client, installation: str) -> None:
    prometheus = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"}
    async with open_house(database_url, client, installation, worker=False) as house:
        ready = await house.http.get("/readyz", headers=prometheus)
        assert (ready.status_code, ready.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        assert list(text_string_to_metric_families(ready.text)) == []
        await house.sql("UPDATE alembic_version SET version_num = '0000'")
        assert (await house.http.get("/readyz", headers=prometheus)).status_code == 503


async def test_not_ready_without_a_migrated_database(database_url: str, client: Client, installation: str) -> None:
    async with open_house(database_url, client, installation, worker=False) as house:
        await house.sql("UPDATE alembic_version SET version_num = '0000'")
        answer = await house.http.get("/readyz")
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/not-ready")
        assert (await house.http.get("/healthz")).status_code == 200
