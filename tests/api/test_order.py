"""Orders over HTTP, on the real stack."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from temporalio.client import Client
from temporalio.service import RPCError

from domain.ids import order_id as derive_order_id
from local.ports import free_port
from tests.api.frontends import Health, frontend
from tests.houses import House, open_house, order_body
from tests.receivers import Receiver, verified
from tests.waiting import eventually


async def test_an_order_is_reserved_in_the_first_answer_then_confirmed(house: House, receiver: Receiver) -> None:
    secret = await house.webhook("shop", receiver.url)
    await house.product("tea", 10)
    response = await house.order("k-1", {"tea": 2})
    order = response.json()
    assert (response.status_code, order["status"]) == (201, "RESERVED")
    assert await house.stock("tea") == (10, 2)

    confirmed = await _command(house, order["orderId"], "confirm")
    assert (confirmed.status_code, confirmed.json()["status"]) == (200, "CONFIRMED")
    assert confirmed.json()["delivery"] == {"status": "PENDING", "courierId": None}
    assert await house.stock("tea") == (8, 0)

    await receiver.got("order.reserved", "order.confirmed", "delivery.requested", lane=order["orderId"])
    for received in receiver.accepted:
        event = verified(received, secret)
        assert event["id"] == received.headers["webhook-id"]
    await house.invariants_hold()


async def test_200_orders_at_once_for_100_units_sell_exactly_100(house: House) -> None:
    await house.product("tea", 100)
    answers = await asyncio.gather(*(house.order(f"k-{number}", {"tea": 1}) for number in range(200)))
    assert Counter(answer.status_code for answer in answers) == {201: 100, 409: 100}
    short = next(answer for answer in answers if answer.status_code == 409).json()
    assert short["lines"] == [{"sku": "tea", "requested": 1, "available": 0}]
    assert (await house.get("/api/products/tea"))["available"] == 0
    assert await house.metric('ops_orders{status="RESERVED"}') == 100
    assert await house.metric('ops_orders{status="REJECTED"}') == 100
    await house.invariants_hold()


async def test_100_copies_of_one_request_make_one_order_and_one_reservation(house: House) -> None:
    await house.product("tea", 10)
    answers = await asyncio.gather(*(house.order("the-key", {"tea": 3}) for _ in range(100)))
    assert {answer.status_code for answer in answers} <= {200, 201}
    assert len({answer.json()["orderId"] for answer in answers}) == 1
    assert await house.stock("tea") == (10, 3)
    [[reservations]] = await house.sql("SELECT count(*) FROM reservations")
    assert reservations == 1


async def test_two_lines_of_one_sku_are_one_demand(house: House) -> None:
    await house.product("tea", 3)
    lines = [{"sku": "tea", "quantity": 2}, {"sku": "tea", "quantity": 2}]
    headers = {"Idempotency-Key": "k-1"}
    answer = await house.call("POST", "/api/orders", {**order_body({}), "lines": lines}, role="client", headers=headers)
    assert (answer.status_code, answer.json()["lines"]) == (409, [{"sku": "tea", "requested": 4, "available": 3}])
    assert await house.stock("tea") == (3, 0)


async def test_an_order_is_all_or_nothing(house: House) -> None:
    await house.product("tea", 5)
    await house.product("milk", 1)
    answer = await house.order("k-1", {"tea": 1, "milk": 2})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/insufficient-stock")
    assert await house.stock("tea") == (5, 0)
    assert await house.stock("milk") == (1, 0)


async def test_the_same_key_gives_the_same_outcome_again(house: House) -> None:
    await house.product("tea", 5)
    first = await house.order("k-1", {"tea": 5})
    again = await house.order("k-1", {"tea": 5})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    rejected = await house.order("k-2", {"tea": 1})
    await _command(house, first.json()["orderId"], "cancel")
    rejected_again = await house.order("k-2", {"tea": 1})
    assert (rejected.status_code, rejected_again.status_code) == (409, 409)
    assert rejected_again.json()["lines"] == rejected.json()["lines"]


async def test_the_same_key_with_another_body_is_refused_also_while_the_first_is_under_way(house: House) -> None:
    await house.product("tea", 50)
    answers = await asyncio.gather(*(house.order("k-1", {"tea": 1 + number % 2}) for number in range(20)))
    assert Counter(answer.status_code // 100 for answer in answers) == {2: 10, 4: 10}
    refused = [answer for answer in answers if answer.status_code == 422]
    assert {answer.json()["type"] for answer in refused} == {"/problems/idempotency-key-reused"}


async def test_a_refused_request_does_not_use_up_its_key(house: House) -> None:
    await house.product("tea", 5)
    assert (await house.order("k-1", {"coffee": 1})).json()["type"] == "/problems/unknown-sku"
    assert (await house.order("k-1", {"tea": 0})).status_code == 422
    assert (await house.order("k-1", {"tea": 1})).status_code == 201


async def test_another_callers_key_is_another_order(house: House) -> None:
    await house.product("tea", 5)
    await house.reserved("k-1", {"tea": 1})
    body = (await house.get("/api/orders"))["items"][0]
    asked = {"customerId": "c-1", "zone": "north", "lines": body["lines"], "dropoff": {"lat": 52.5, "lng": 13.4}}
    answer = await house.call("POST", "/api/orders", asked, role="admin", headers={"Idempotency-Key": "k-1"})
    assert answer.status_code == 201
    assert answer.json()["orderId"] != body["orderId"]


async def test_a_short_hold_expires_within_a_second_of_its_deadline(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url)
    await house.product("tea", 5)
    order_id = await house.reserved("k-1", {"tea": 2}, holdSeconds=2)
    order = await house.status_becomes(order_id, "EXPIRED")
    expired_at = datetime.fromisoformat(order["timeline"][-1]["at"])
    deadline = datetime.fromisoformat(order["expiresAt"])
    assert timedelta(0) <= expired_at - deadline < timedelta(seconds=1)
    assert await house.stock("tea") == (5, 0)
    await receiver.got("order.reserved", "order.expired", lane=order_id)
    late = await _command(house, order_id, "confirm")
    assert (late.status_code, late.json()["type"]) == (409, "/problems/hold-expired")


async def test_an_extended_hold_outlives_its_first_deadline(house: House) -> None:
    await house.product("tea", 5)
    order_id = await house.reserved("k-1", {"tea": 1}, holdSeconds=1)
    extended = await _command(house, order_id, "extend", {"holdSeconds": 600})
    expires_at = datetime.fromisoformat(extended.json()["expiresAt"])
    assert expires_at > datetime.now(UTC) + timedelta(seconds=500)
    shorter = await _command(house, order_id, "extend", {"holdSeconds": 1})
    assert datetime.fromisoformat(shorter.json()["expiresAt"]) == expires_at
    assert (await _command(house, order_id, "confirm")).json()["status"] == "CONFIRMED"


async def test_a_cancel_gives_the_stock_back_also_after_confirm(house: House, receiver: Receiver) -> None:
    await house.webhook("shop", receiver.url)
    await house.product("tea", 5)
    reserved = await house.reserved("k-1", {"tea": 2})
    confirmed = await house.reserved("k-2", {"tea": 3})
    await _command(house, confirmed, "confirm")
    for order_id in (reserved, confirmed):
        answers = [await _command(house, order_id, "cancel") for _ in range(2)]
        assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(200, "CANCELLED")] * 2
    assert await house.stock("tea") == (5, 0)
    await receiver.got("order.reserved", "order.cancelled", lane=reserved)
    types = ("order.reserved", "order.confirmed", "delivery.requested", "order.cancelled", "delivery.cancelled")
    await receiver.got(*types, lane=confirmed)
    late = await _command(house, confirmed, "confirm")
    assert (late.status_code, late.json()["type"]) == (409, "/problems/order-cancelled")
    await house.invariants_hold()


async def test_a_picked_up_order_cannot_be_cancelled(house: House) -> None:
    await house.product("tea", 5)
    await house.courier("ada")
    delivery_id = await house.confirmed("k-1")
    order_id = (await house.delivery_becomes(delivery_id, "ASSIGNED"))["orderId"]
    assert (await house.act(delivery_id, "pickup", "ada")).status_code == 200
    answer = await _command(house, order_id, "cancel")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/already-picked-up")
    assert await house.stock("tea") == (4, 0)
    await house.invariants_hold()


async def test_confirm_expiry_and_cancel_racing_have_one_outcome_each(house: House) -> None:
    await house.product("tea", 1000)
    orders = [await house.reserved(f"k-{number}", {"tea": 1}, holdSeconds=60) for number in range(60)]
    await house.sql("UPDATE reservations SET expires_at = clock_timestamp() + interval '700 milliseconds'")
    await asyncio.gather(
        *(_command(house, order_id, command) for order_id in orders for command in ("confirm", "cancel", "confirm")),
        house.call("POST", "/api/admin/ops/reservations/sweep"),
    )

    async def decided() -> bool:
        await house.sql("UPDATE reservations SET expires_at = now() - interval '1 minute' WHERE status = 'ACTIVE'")
        await house.call("POST", "/api/admin/ops/reservations/sweep")
        return await house.metric('ops_inventory_reservations{status="ACTIVE"}') == 0

    await eventually(decided)
    statuses = Counter(order["status"] for order in [await house.get(f"/api/orders/{each}") for each in orders])
    assert set(statuses) <= {"CONFIRMED", "CANCELLED", "EXPIRED"}
    assert await house.stock("tea") == (1000 - statuses["CONFIRMED"], 0)
    ends = await house.sql("""
        SELECT lane FROM outbox_events WHERE event_type IN ('waybill.order.cancelled', 'waybill.order.expired')
        GROUP BY lane HAVING count(*) > 1""")
    assert ends == []
    await house.invariants_hold()


async def test_nobody_home_answers_at_once_and_starts_nothing(
    database_url: str, client: Client, installation: str
) -> None:
    async with open_house(database_url, client, installation, worker=False) as house:
        await house.product("tea", 5)
        answer = await house.order("k-1", {"tea": 1})
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/no-worker")
        assert int(answer.headers["Retry-After"]) > 0
        with pytest.raises(RPCError, match="not found"):
            await house.workflow(derive_order_id("client", "k-1")).describe()
        assert (await house.get("/api/orders"))["items"] == []


async def test_without_temporal_nothing_is_started_and_the_answer_says_so(
    house: House, database_url: str, installation: str
) -> None:
    await house.product("tea", 5)
    held = await house.reserved("k-held", {"tea": 1})
    nowhere = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with open_house(database_url, nowhere, installation, worker=False) as cut_off:
        answers = [await cut_off.order("k-1", {"tea": 1})]
        answers += [await _command(cut_off, held, command) for command in ("confirm", "cancel")]
    for answer in answers:
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/temporal-unavailable")
        assert int(answer.headers["Retry-After"]) > 0
    assert [each["orderId"] for each in (await house.get("/api/orders"))["items"]] == [held]
    assert (await house.get(f"/api/orders/{held}"))["status"] == "RESERVED"


@pytest.mark.parametrize(
    ("checks", "problem"),
    [
        ([Health.NOT_SERVING], "temporal-unavailable"),
        ([Health.FAILING, Health.FAILING], "temporal-unavailable"),
        ([Health.FAILING, Health.SERVING], "order-pending"),  # it was sent: the staged server knows no such call
    ],
)
async def test_a_temporal_that_does_not_serve_is_sent_nothing_and_one_passing_error_does_not_count(
    database_url: str, installation: str, checks: list[Health], problem: str
) -> None:
    async with frontend(checks) as address:
        staged = await Client.connect(address, lazy=True)
        async with open_house(database_url, staged, installation, worker=False) as house:
            await house.product("tea", 5)
            await house.sql("INSERT INTO workers (worker_id, heartbeat_at) VALUES ('w-1', now() + interval '1 hour')")
            answer = await house.order("k-1", {"tea": 1})
    assert (answer.status_code, answer.json()["type"]) == (503, f"/problems/{problem}")
    assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize("stage", ["RESERVED", "CONFIRMED"])
async def test_an_order_whose_workflow_was_terminated_can_still_be_paid_and_cancelled(house: House, stage: str) -> None:
    await house.product("tea", 5)
    order_id = await house.reserved("k-1", {"tea": 1})
    if stage == "CONFIRMED":
        await _command(house, order_id, "confirm")
    await house.workflow(order_id).terminate("staged")
    for command, status in (("confirm", "CONFIRMED"), ("cancel", "CANCELLED")):
        answer = await _command(house, order_id, command)
        assert (answer.status_code, answer.json()["status"]) == (200, status), answer.text
    await house.invariants_hold()


async def test_a_hold_can_be_extended_as_often_as_a_client_likes(house: House) -> None:
    await house.product("tea", 5)
    order_id = await house.reserved("k-1", {"tea": 1})
    run_id = (await house.workflow(order_id).describe()).run_id
    for _ in range(52):  # Temporal takes 2,000 updates a run, ten at a time
        answers = await asyncio.gather(*(_command(house, order_id, "extend", {"holdSeconds": 60}) for _ in range(10)))
        assert {answer.status_code for answer in answers} == {200}
    assert (await house.workflow(order_id).describe()).run_id != run_id
    assert (await _command(house, order_id, "confirm")).json()["status"] == "CONFIRMED"


async def test_orders_are_listed_newest_first_page_by_page(house: House) -> None:
    await house.product("tea", 5)
    made = [await house.reserved(f"k-{number}", {"tea": 1}) for number in range(5)]
    await _command(house, made[2], "cancel")
    seen: list[str] = []
    path = "/api/orders?limit=2"
    while True:
        page = await house.get(path)
        seen += [order["orderId"] for order in page["items"]]
        if page["nextCursor"] is None:
            break
        path = f"/api/orders?limit=2&cursor={page['nextCursor']}"
    assert seen == made[::-1]
    cancelled = await house.get("/api/orders?status=CANCELLED")
    assert [order["orderId"] for order in cancelled["items"]] == [made[2]]


@pytest.mark.parametrize("order_id", ["nope", "0", "%F0%9F%8D%B5", "a%00b", "x" * 5000])
async def test_an_id_of_any_shape_that_does_not_exist_is_404(quiet_house: House, order_id: str) -> None:
    for method, path in (("GET", ""), ("POST", "/confirm"), ("POST", "/cancel")):
        answer = await quiet_house.call(method, f"/api/orders/{order_id}{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def _command(house: House, order_id: str, command: str, body: object = None) -> httpx.Response:
    return await house.call("POST", f"/api/orders/{order_id}/{command}", body, role="client")
