"""The console's pages: each shows its rows, whatever they hold, and needs nobody but PostgreSQL."""

from __future__ import annotations

import asyncio
import html
import json
import re
from dataclasses import asdict

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio.client import Client

from api.app import create_app
from db.samples import BUCKET_SECONDS, sample_if_due
from domain.assignment.view import FreeCourier, RoundView, WaitingDelivery
from domain.ids import order_id
from domain.order import Place
from local.ports import free_port
from settings import Settings
from tests.api.console.desks import failed, logged_in, reserved
from tests.houses import TOKENS, House, open_house
from tests.waiting import eventually

HOSTILE = "<script>alert('x')</script>\"'&{{7*7}}"
INLINE = re.compile(r"<style|\sstyle=|\son\w+=|<script(?! src=)|javascript:|hx-on", re.IGNORECASE)


def shown(text: str) -> str:
    """The text as a page that escapes it holds it."""
    return html.escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")


async def fill(house: House) -> tuple[str, str]:
    """Rows for every page, hostile wherever somebody else's text is kept; a failed event's id and a dry run's."""
    await house.product("tea", 50)
    await house.webhook("shop", "http://127.0.0.1:9/?q=%3Cscript%3E&x='\"<script>", reason=HOSTILE)
    await house.product("tea", 60)
    await reserved(house, "o-1")
    await house.sql("UPDATE orders SET customer_id = :hostile", hostile=HOSTILE)
    await house.sql("UPDATE reservations SET expires_at = now() - interval '1 hour'")
    _, event_id = await failed(house, HOSTILE)
    await house.sql("UPDATE outbox_endpoints SET open_until = now(), last_error = :hostile", hostile=HOSTILE)
    await house.sql("UPDATE products SET reserved = reserved + 2")
    await house.sql("INSERT INTO conflict_counts VALUES ('auto', 'capacity', 0, 3)")
    await house.sql("INSERT INTO zone_conflict_counts VALUES ('north', 'auto', 'capacity', 0, 3)")
    await house.sql(
        "INSERT INTO metric_samples (at, \"values\") VALUES (now() - interval '1 minute', '{\"zoneConflicts\": []}')"
    )
    await house.sql(
        "INSERT INTO reconciliations (operation_id, dry_run, actor, reason, status)"
        " VALUES ('op-1', true, 'admin', :hostile, 'DONE')",
        hostile=HOSTILE,
    )
    await house.sql(
        "INSERT INTO outbox_replays (operation_id, action, filter, dry_run, status, actor, reason, total)"
        " VALUES ('op-2', 'replay', CAST(:filter AS jsonb), true, 'DONE', 'admin', :hostile, 7)",
        hostile=HOSTILE,
        filter='{"sink": "shop"}',
    )
    await house.sql(
        "INSERT INTO corrections (operation_id, sku, reserved_before, reserved_after, ledger_before, ledger_after,"
        " applied) VALUES ('op-1', 'tea', 3, 1, 60, 60, false)"
    )
    await house.sql(
        "INSERT INTO deliveries (delivery_id, order_id, zone, status, attention, promised_at, dropoff, timeline)"
        " VALUES ('d-1', 'o-1', 'north', 'NEEDS_ATTENTION', 'max_offers', now(), '{}', jsonb_build_array("
        "jsonb_build_object('at', now(), 'what', 'needs_attention', 'reason', CAST(:hostile AS text))))",
        hostile=HOSTILE,
    )
    place = Place(52.5, 13.4)
    waiting = [WaitingDelivery(each, place, -90.0, not_by=(HOSTILE,)) for each in ("d-1", "d-2", "d-3")]
    inputs = asdict(RoundView(tuple(waiting), (FreeCourier(HOSTILE, place, 2),)))
    pair = {"courier_id": HOSTILE, "cost_seconds": 321.4}
    lost = {"delivery_id": "d-1", "courier_id": HOSTILE, "kind": "delivery_taken", "holder": HOSTILE}
    await house.sql(
        "INSERT INTO assignment_rounds (round_id, zone, started_at, finished_at, inputs, deliveries, couriers, pairs,"
        " assigned, conflicts, losers) VALUES ('r-1', 'north', now() - interval '1.5 seconds', now(),"
        " CAST(:inputs AS jsonb), 3, 1, CAST(:pairs AS jsonb), 1, 1, CAST(:losers AS jsonb))",
        inputs=json.dumps(inputs),
        pairs=json.dumps([{**pair, "delivery_id": each} for each in ("d-1", "d-2")]),
        losers=json.dumps([lost]),
    )
    checks = [{"name": "stock_not_negative", "ok": False, "violations": 1, "sample": [HOSTILE]}]
    for snapshot_id, orders in (("s-1", 1), ("s-2", 3)):
        content = {
            "capturedAt": "2026-01-02T03:04:05Z",
            "metrics": {'ops_orders{status="RESERVED"}': orders, "ops_outbox_backlog_size": 0},
            "invariants": {"ok": False, "checks": checks},
            "health": {"hostile": HOSTILE},
        }
        await house.sql(
            "INSERT INTO snapshots (snapshot_id, reason, status, content)"
            " VALUES (:id, :hostile, 'DONE', CAST(:content AS jsonb))",
            id=snapshot_id,
            hostile=HOSTILE,
            content=json.dumps(content),
        )
    await house.sql("INSERT INTO snapshots (snapshot_id) VALUES ('s-3')")
    return event_id, "op-1"


async def test_every_page_shows_its_rows_with_every_worker_and_temporal_down(
    database_url: str, installation: str
) -> None:
    nowhere = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with open_house(database_url, nowhere, installation, worker=False) as house:
        event_id, operation_id = await fill(house)
        pages = {
            "": (
                "Needs attention",
                "No worker is alive",
                "reserved matches active reservations",
                "1 message failed",
                "1 delivery in need of a person",
            ),
            "/failures": ("inventory.adjusted", "/replay", shown(HOSTILE), "outbox-failure-"),
            "/failures/groups": ("1 message", shown(HOSTILE), "/console/failures?fingerprint="),
            f"/events/{event_id}": ("To shop", shown(HOSTILE), "Ignore for good", "Send it fixed"),
            "/replays": ("counted only", shown(HOSTILE)),
            "/replays/op-2": ("7 messages counted", shown(HOSTILE), "Replay 7 messages", "none is alive"),
            "/reservations": ("o-1", "1 h 00 min", "Temporal does not answer", "none is alive"),
            "/inventory": ("+2", "1 product drifted", "none is alive"),
            f"/inventory/reconcile/{operation_id}": ("Apply to 1 product", shown(HOSTILE)),
            "/assignment": ("capacity", "need attention in north", "Knobs of </span>north", "by auto: capacity"),
            "/assignment/north": ("Batch window", "none is alive", "/console/rounds?zone=north"),
            "/rounds": ("r-1", "north", "1.5"),
            "/rounds?zone=south": ("No round is kept of zone south.",),
            "/rounds/r-1": (
                shown(HOSTILE),
                "321",
                "delivery taken",
                "left waiting",
                "late by 1 min 30 s",
                "52.5000",
                "has declined it",
            ),
            "/attention": ("d-1", "NEEDS_ATTENTION", shown(HOSTILE), "/requeue"),
            "/attention?zone=south": ("No delivery of zone south needs a person.",),
            "/orders": ("o-1", shown(HOSTILE), f"{installation}-order-o-1"),
            "/orders/o-1": ("RESERVED", f"needs attention: {shown(HOSTILE)}", "Timeline"),
            "/webhooks": ("shop", "open", shown(HOSTILE), "Send again"),
            "/snapshots/s-3": ("It is being captured.", "/console/snapshots/s-2"),
            "/snapshots": ("DONE", "s-2", shown(HOSTILE), "none is alive"),
            "/snapshots/s-2": (
                shown(HOSTILE),
                "1 invariant broken",
                "+2</td>",
                "/console/snapshots/s-1",
                "Save all of it",
            ),
            "/actions": ("webhook.put", shown(HOSTILE), "Before, after"),
        }
        async with logged_in(house) as desk:
            for path, words in pages.items():
                page = await desk.get(path)
                assert [word for word in words if word not in page] == [], path
                assert "<script>alert" not in page
                assert INLINE.findall(page) == [], path
                assert re.findall(r'(?:src|href)="(?:https?:)?//(?!127\.0\.0\.1:8233/)', page) == []


_LISTS = (
    "",
    "/failures",
    "/reservations",
    "/inventory",
    "/assignment",
    "/rounds",
    "/attention",
    "/orders",
    "/webhooks",
    "/snapshots",
    "/actions",
)


async def test_a_page_that_asks_for_news_gets_its_live_part_alone(quiet_house: House) -> None:
    await quiet_house.product("tea", 5)
    async with logged_in(quiet_house) as desk:
        for path in _LISTS:
            whole = await desk.get(path)
            part = (await desk.http.get(f"/console{path}", headers={"HX-Request": "true"})).text
            assert "<html" in whole
            assert "<html" not in part
            assert part.strip() in whole or path == ""  # the overview's seconds go on


async def test_all_is_well_only_when_it_is(house: House) -> None:
    async with logged_in(house) as desk:

        async def well() -> bool:
            return "All is well" in await desk.get("")

        await eventually(well)  # once the worker carries every shard
        await house.product("tea", 5)
        await house.sql("UPDATE products SET reserved = 1")
        assert not await well()
        assert "1 invariant broken" in await desk.get("")


async def test_conflicts_need_attention_while_they_spike(quiet_house: House) -> None:
    await quiet_house.sql("INSERT INTO conflict_counts VALUES ('manual', 'delivery_taken', 0, 500)")
    assert await sample_if_due(quiet_house.database, 5)
    async with logged_in(quiet_house) as desk:
        assert "conflicts in 5 min</a>" not in await desk.get("")  # old ones: nobody races now
        await quiet_house.sql("UPDATE conflict_counts SET total = total + 30")
        assert "conflicts in 5 min</a>" not in await desk.get("")
        await quiet_house.sql("UPDATE conflict_counts SET total = total + 1")
        assert 'href="/console/assignment">31 assignment conflicts in 5 min</a>' in await desk.get("")


async def test_a_story_is_linked_only_where_there_is_one(quiet_house: House) -> None:
    await quiet_house.webhook("shop", "http://127.0.0.1:9/")
    await quiet_house.webhook("kiosk", "http://127.0.0.1:9/")
    await quiet_house.product("tea", 5)
    message, event_id = await failed(quiet_house)
    async with logged_in(quiet_house) as desk:
        linked = re.findall(r"-outbox-failure-([\d-]+)", await desk.get(f"/events/{event_id}"))
        assert "of 2 webhooks and e-mail" in await desk.get("")
    assert set(linked) == {message}  # the other was not attempted, so no workflow knows it


async def test_the_overview_tells_of_a_job_that_failed_last_and_of_the_mail_server(
    quiet_house: House,
) -> None:
    await quiet_house.sql(
        "INSERT INTO job_runs (job, last_finished_at, last_error_at, last_error, failed_total)"
        " VALUES ('sweep', now(), now() - interval '1 minute', 'x', 1), ('cross_check', NULL, now(), 'over 20', 1)"
    )
    await quiet_house.sql(
        "UPDATE outbox_endpoints SET open_until = now(), last_error = :error WHERE kind = 'email'", error=HOSTILE
    )
    async with logged_in(quiet_house) as desk:
        overview = await desk.get("")
        assert ("The last cross-check failed" in overview, "The last sweep failed" in overview) == (True, False)
        assert "of 0 webhooks and e-mail" in overview
        assert "Not sent to: email" in overview
        assert f"the mail server is asked again by and by: {shown(HOSTILE)}" in await desk.get("/webhooks")


async def test_the_overview_tells_of_a_sweep_that_is_not_run_by_its_schedule(
    database_url: str, client: Client, installation: str
) -> None:
    async with open_house(database_url, client, installation, worker=False, sweep_seconds=60) as house:
        await house.sql("INSERT INTO job_runs (job, last_started_at) VALUES ('sweep', now() - interval '9 minutes')")
        await house.sql("INSERT INTO workers (worker_id, heartbeat_at) VALUES ('w-1', now() + interval '1 hour')")
        async with logged_in(house) as desk:
            assert "is its schedule paused?" not in await desk.get("")
            await house.sql("UPDATE job_runs SET last_started_at = now() - interval '11 minutes'")
            assert "The last sweep began 11 min 00 s ago: is its schedule paused?" in await desk.get("")
            await house.sql("DELETE FROM workers")  # then that is what is wrong
            assert "is its schedule paused?" not in await desk.get("")


async def test_a_webhook_that_an_admin_switched_off_while_it_was_down_troubles_nobody(quiet_house: House) -> None:
    await quiet_house.webhook("shop", "http://127.0.0.1:9/")
    await quiet_house.sql("UPDATE outbox_endpoints SET open_until = now() WHERE name = 'shop'")
    assert await quiet_house.metric('ops_outbox_endpoint_open{endpoint="shop"}') == 1
    await quiet_house.call("PUT", "/api/admin/webhooks/shop", {"url": "http://127.0.0.1:9/", "enabled": False})
    assert await quiet_house.metric('ops_outbox_endpoint_open{endpoint="shop"}') == 0
    async with logged_in(quiet_house) as desk:
        assert "Not sent to" not in await desk.get("")
        assert "Send again" in await desk.get("/webhooks")
    await quiet_house.sql("UPDATE outbox_endpoints SET enabled = true, disabled_reason = 'it answered 410 Gone'")
    assert await quiet_house.metric('ops_outbox_endpoint_open{endpoint="shop"}') == 1  # nobody wanted that


async def test_the_overview_tells_of_a_lock_that_is_waited_for_long(quiet_house: House) -> None:
    await quiet_house.product("tea", 5)

    async def told() -> bool:
        async with logged_in(quiet_house) as desk:
            return "Sessions wait for locks" in await desk.get("")

    async def lock(connection: AsyncConnection) -> None:
        await connection.execute(text("SET LOCAL lock_timeout = 0"))
        await connection.execute(text("SELECT FROM products FOR UPDATE"))

    async def hold(connection: AsyncConnection) -> asyncio.Task[None]:
        await lock(connection)
        waiting = asyncio.create_task(quiet_house.database.transact(lock))
        await eventually(told)
        return waiting

    await (await quiet_house.database.transact(hold))
    assert not await told()


async def test_mistakes_are_answered_with_pages(quiet_house: House) -> None:
    async with logged_in(quiet_house) as desk:
        for path, status, words in (
            ("/nothing", 404, "There is nothing at this address."),
            ("/orders/nope", 404, "There is no such order."),
            ("/events/nope", 404, "There is no such event."),
            ("/assignment/nope", 404, "There is no such zone."),
            ("/rounds/nope", 404, "There is no such round."),
            ("/rounds?cursor=nope", 422, "The cursor is not one that this list gave out."),
            ("/rounds?zone=a%20b", 200, "No round is kept of zone a b."),
            (f"/attention?zone={'x' * 65}", 422, "at most 64 characters"),
            ("/replays/nope", 404, "There is no such operation."),
            ("/snapshots/nope", 404, "There is no such snapshot."),
            ("/snapshots/nope/file", 404, "There is no such snapshot."),
            ("/inventory/reconcile/nope", 404, "There is no such reconciliation."),
            ("/orders?cursor=nope", 422, "The cursor is not one that this list gave out."),
            ("/failures?status=nope", 422, "There is no message status of that name."),
            ("/orders?customer=%00", 422, "NUL"),
            ("/orders/a%00b", 404, "There is nothing at this address."),
        ):
            assert words in await desk.get(path, status=status)


async def test_with_the_database_down_who_logs_in_is_told_so(client: Client) -> None:
    settings = Settings(
        database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/none",
        client_token=TOKENS["client"],
        courier_token=TOKENS["courier"],
        admin_token=TOKENS["admin"],
    )
    app = create_app(settings, client)
    caller = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://console")
    async with app.router.lifespan_context(app), caller as http:
        assert (await http.get("/console/login")).status_code == 200
        assert (await http.post("/console/login", data={"token": TOKENS["admin"]})).status_code == 303
        assert (await http.get("/console/static/console.css")).status_code == 200
        for headers in ({}, {"HX-Request": "true"}):
            answer = await http.get("/console", headers=headers)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
            assert "The database does not answer at the moment." in answer.text
            assert ("<html" in answer.text) == (headers == {})


async def test_long_lists_go_on_page_by_page(quiet_house: House) -> None:
    await quiet_house.sql(
        "INSERT INTO admin_actions (actor, action, target) SELECT 'admin', 'drill', 'n:' || n"
        " FROM generate_series(1, 60) n"
    )
    seen: list[str] = []
    path = "/actions"
    async with logged_in(quiet_house) as desk:
        while path:
            page = await desk.get(path)
            seen += re.findall(r"<td[^>]*>(n:\d+)</td>", page)
            older = re.findall(r'href="/console(/actions\?cursor=[^"]+)"', page)
            path = html.unescape(older[0]) if older else ""
    assert seen == [f"n:{number}" for number in range(60, 0, -1)]


async def test_an_order_is_found_by_whatever_somebody_has_in_hand(quiet_house: House) -> None:
    await quiet_house.product("tea", 5)
    found = order_id("client", "my key")
    await reserved(quiet_house, found)
    await reserved(quiet_house, "o-2")
    await quiet_house.sql("UPDATE orders SET customer_id = 'c-2' WHERE order_id = 'o-2'")
    await quiet_house.sql(
        "INSERT INTO deliveries (delivery_id, order_id, zone, status, promised_at, dropoff, timeline)"
        " VALUES ('d-1', :id, 'north', 'PENDING', now(), '{}', '[]')",
        id=found,
    )
    async with logged_in(quiet_house) as desk:
        for hint in (found, f" {found} ", "d-1", "my key", quiet_house.names.order(found)):
            answer = await desk.http.get("/console/orders", params={"find": hint})
            assert (answer.status_code, answer.headers["location"]) == (303, f"/console/orders/{found}")
        assert "No order, delivery or workflow" in await desk.get("/orders?find=nothing", status=404)
        for hint in ("nothing", "d-1"):  # the page stays the list that it is, and up to date
            news = await desk.http.get("/console/orders", params={"find": hint}, headers={"HX-Request": "true"})
            assert (news.status_code, "o-2" in news.text) == (200, True)
        of_customer = await desk.get("/orders?customer=c-2&status=RESERVED")
        assert ("o-2" in of_customer, found in of_customer) == (True, False)
        assert "o-2" not in await desk.get("/orders?customer=c-2&status=CONFIRMED")


async def test_the_charts_show_what_was_sampled_and_where_nobody_sampled(quiet_house: House) -> None:
    await quiet_house.product("tea", 5)
    assert await sample_if_due(quiet_house.database, 5)
    await quiet_house.sql(
        'INSERT INTO metric_samples (at, "values") SELECT at - make_interval(secs => :seconds),'
        ' \'{"backlog": 4, "dispatched": 0}\' FROM metric_samples',
        seconds=float(3 * BUCKET_SECONDS),
    )
    async with logged_in(quiet_house) as desk:
        charts = (await desk.http.get("/console/charts")).json()
        page = await desk.get("")
    assert [at - charts["at"][0] for at in charts["at"]] == [0, 15, 30, 45]
    assert charts["charts"]["backlog"] == [[4, None, None, 0]]
    assert charts["charts"]["dispatched"] == [[None, None, None, None]]
    assert "in the last hour from 0 to 4" in page
