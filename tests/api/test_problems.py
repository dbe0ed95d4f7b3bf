"""Every error is a problem detail, and nothing a caller sends makes another kind of answer."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import Any

import httpx
import pytest

from api.order import StartOrder
from domain.ids import order_id
from tests.houses import TOKENS, House, order_body

KEY = {"Idempotency-Key": "k-1"}


def assert_problem(answer: httpx.Response, status: int, slug: str) -> None:
    """The whole form of RFC 9457, as the contract has it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"/problems/{slug}"
    assert problem["status"] == status
    assert problem["instance"] == answer.request.url.raw_path.partition(b"?")[0].decode()
    assert problem["title"]
    assert problem["detail"]


async def test_a_missing_or_overlong_idempotency_key_is_400(quiet_house: House) -> None:
    missing = await quiet_house.call("POST", "/api/orders", order_body({"tea": 1}))
    assert_problem(missing, 400, "idempotency-key-missing")
    overlong = await quiet_house.call(
        "POST", "/api/orders", order_body({"tea": 1}), headers={"Idempotency-Key": "k" * 256}
    )
    assert_problem(overlong, 400, "idempotency-key-too-long")


async def test_a_body_that_is_not_json_is_400(quiet_house: House) -> None:
    headers = {"authorization": f"Bearer {TOKENS['admin']}", "content-type": "application/json", **KEY}
    for content in (b'{"customerId":', b"\xff\xfe", b""):
        answer = await quiet_house.http.post("/api/orders", content=content, headers=headers)
        assert answer.status_code in (400, 422)
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic YTpi", "Bearer", f"bearer{TOKENS['admin']}"])
async def test_without_a_good_token_it_is_401(quiet_house: House, authorization: str | None) -> None:
    headers = {"authorization": authorization} if authorization else {}
    for path in ("/api/orders", "/api/admin/ops/metrics", "/api/nothing", "/nothing"):
        answer = await quiet_house.http.get(path, headers=headers)
        assert_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"


FORBIDDEN = [
    ("client", "GET", "/api/admin/ops/metrics"),
    ("client", "GET", "/api/admin/ops/outbox/failures"),
    ("client", "GET", "/api/admin/ops/reservations/stuck"),
    ("client", "GET", "/api/admin/ops/inventory/drift"),
    ("client", "PUT", "/api/admin/products/tea"),
    ("client", "PUT", "/api/couriers/c-1"),
    ("client", "POST", "/api/deliveries/d-1/accept"),
    ("courier", "POST", "/api/orders"),
    ("courier", "GET", "/api/products"),
    ("courier", "GET", "/api/admin/ops/actions"),
]


@pytest.mark.parametrize(("role", "method", "path"), FORBIDDEN)
async def test_the_wrong_role_is_403(quiet_house: House, role: str, method: str, path: str) -> None:
    assert_problem(await quiet_house.call(method, path, role=role), 403, "forbidden")


async def test_an_address_that_is_none_is_404_and_a_wrong_method_405(quiet_house: House) -> None:
    assert_problem(await quiet_house.call("GET", "/api/nothing"), 404, "not-found")
    wrong = await quiet_house.call("DELETE", "/api/orders")
    assert_problem(wrong, 405, "method-not-allowed")


ALLOWED = {
    "/api/orders": "GET, HEAD, POST",
    "/api/orders/o-1/confirm": "POST",
    "/api/admin/webhooks/w": "GET, HEAD, PUT, DELETE",
    "/api/admin/ops/assignment/settings/north": "GET, HEAD, PATCH",
    "/healthz": "GET, HEAD",
}


async def test_a_wrong_method_is_told_every_method_that_the_address_takes(quiet_house: House) -> None:
    for path, methods in ALLOWED.items():
        for wrong in ("OPTIONS", "TRACE"):
            answer = await quiet_house.call(wrong, path)
            assert_problem(answer, 405, "method-not-allowed")
            assert answer.headers["allow"] == methods


IDS = ["a%0Ab", "a%20b", "%22%3Cscript%3E", "%C3%A4", "%FF", "a%2Fb", "a%2faccept", "..%2Forders"]


async def test_an_id_of_any_shape_that_does_not_exist_is_404_at_its_address_as_it_was_sent(quiet_house: House) -> None:
    for unknown in IDS:
        for noun in ("orders", "products", "deliveries", "couriers", "admin/webhooks", "admin/ops/snapshots"):
            assert_problem(await quiet_house.call("GET", f"/api/{noun}/{unknown}"), 404, "not-found")
        assert_problem(await quiet_house.call("POST", f"/api/orders/{unknown}/cancel"), 404, "not-found")


async def test_a_slash_within_an_id_makes_no_action_of_its_end(quiet_house: House) -> None:
    answer = await quiet_house.call("POST", "/api/deliveries/d-1%2Faccept", {"courierId": "c-1"})
    assert_problem(answer, 404, "not-found")
    assert answer.json()["title"] == "There is nothing at this address."


async def test_an_address_that_is_no_uri_is_written_as_one(quiet_house: House) -> None:
    host, port = "127.0.0.1", quiet_house.settings.api_port
    reader, writer = await asyncio.open_connection(host, port)
    headers = ['GET /api/a"<b> HTTP/1.1', f"Host: {host}", f"Authorization: Bearer {TOKENS['admin']}"]
    writer.write("\r\n".join([*headers, "Connection: close", "", ""]).encode())
    answer = (await reader.read()).decode()
    writer.close()
    assert json.loads(answer.partition("\r\n\r\n")[2])["instance"] == "/api/a%22%3Cb%3E"


async def test_a_body_of_more_than_a_mebibyte_is_413(quiet_house: House) -> None:
    headers = {"authorization": f"Bearer {TOKENS['admin']}", "content-type": "application/json", **KEY}
    big = b'{"customerId":"' + b"c" * (1024 * 1024) + b'"}'
    assert_problem(await quiet_house.http.post("/api/orders", content=big, headers=headers), 413, "content-too-large")

    async def in_pieces() -> Any:
        for start in range(0, len(big), 65536):
            yield big[start : start + 65536]

    answer = await quiet_house.http.post("/api/orders", content=in_pieces(), headers=headers)
    assert_problem(answer, 413, "content-too-large")


BAD_ORDERS: list[dict[str, Any]] = [
    {"customerId": "a\0b"},
    {"customerId": ""},
    {"customerId": "c" * 256},
    {"customerId": 7},
    {"zone": "no/slash"},
    {"zone": "z" * 65},
    {"lines": []},
    {"lines": [{"sku": "tea", "quantity": 0}]},
    {"lines": [{"sku": "tea", "quantity": -1}]},
    {"lines": [{"sku": "tea", "quantity": 1.5}]},
    {"lines": [{"sku": "tea", "quantity": "1"}]},
    {"lines": [{"sku": "tea", "quantity": True}]},
    {"lines": [{"sku": "tea", "quantity": 10**30}]},
    {"lines": [{"sku": "te\0a", "quantity": 1}]},
    {"lines": [{"sku": "tea", "quantity": 1, "colour": "green"}]},
    {"dropoff": None},
    {"dropoff": {"lat": 91, "lng": 0}},
    {"dropoff": {"lat": 0, "lng": -181}},
    {"dropoff": {"lat": 0, "lng": 0, "address": "a\0b"}},
    {"email": "nobody"},
    {"email": "a@b\nBcc: c@d"},
    {"holdSeconds": 0},
    {"holdSeconds": 86_401},
    {"unknown": 1},
]


@pytest.mark.parametrize("bad", BAD_ORDERS, ids=str)
async def test_an_order_that_cannot_be_meant_is_422(quiet_house: House, bad: dict[str, Any]) -> None:
    body = {**order_body({"tea": 1}), **bad}
    assert_problem(await quiet_house.call("POST", "/api/orders", body, headers=KEY), 422, "invalid-request")


@pytest.mark.parametrize("text", ['"\\ud800"', '"\\u0000"'])
async def test_text_that_cannot_be_stored_is_422_wherever_it_stands(quiet_house: House, text: str) -> None:
    headers = {"authorization": f"Bearer {TOKENS['admin']}", "content-type": "application/json", **KEY}
    content = f'{{"name":{text},"stock":1}}'
    answer = await quiet_house.http.put("/api/admin/products/tea", content=content, headers=headers)
    assert_problem(answer, 422, "invalid-request")
    content = f'{{{text}:1,"name":"Tea","stock":1}}'
    answer = await quiet_house.http.put("/api/admin/products/tea", content=content, headers=headers)
    assert_problem(answer, 422, "invalid-request")


async def test_not_a_number_is_422(quiet_house: House) -> None:
    headers = {"authorization": f"Bearer {TOKENS['admin']}", "content-type": "application/json", **KEY}
    content = '{"customerId":"c","zone":"z","lines":[{"sku":"tea","quantity":1}],"dropoff":{"lat":NaN,"lng":1e999}}'
    answer = await quiet_house.http.post("/api/orders", content=content, headers=headers)
    assert_problem(answer, 422, "invalid-request")


def cursor(*values: str) -> str:
    """A cursor as a list makes it, of values that it never gave out; the first one names the list."""
    return f"cursor={base64.urlsafe_b64encode(json.dumps(values).encode()).decode()}"


LISTS = ("/api/orders", "/api/products", "/api/admin/ops/actions", "/api/admin/ops/outbox/failures")
BAD_CURSORS = [
    ["0001-01-01T00:00:00+23:59", "x"],
    ["9999-12-31T23:59:59-23:59", "x"],
    ["2026-01-01T00:00:00", "x"],
    [str(2**64)],
    ["-1"],
    ["2026-01-01T00:00:00+00:00", "1", str(2**40)],
]
NO_CURSORS = ["%21", "bm9uc2Vuc2U=", "WyJhIl0=", "W10=", "MQ==", "bnVsbA==", "e30=", "%00"]
BAD_PAGES = ["limit=0", "limit=201", "limit=x", *(f"cursor={each}" for each in NO_CURSORS)]


async def test_a_page_that_cannot_be_is_422(quiet_house: House) -> None:
    for path in LISTS:
        for query in BAD_PAGES + [cursor(path, *values) for values in BAD_CURSORS]:
            answer = await quiet_house.call("GET", f"{path}?{query}")
            assert answer.status_code == 422, (path, query, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"


async def test_a_cursor_of_another_list_is_422(quiet_house: House) -> None:
    for number in range(2):
        await quiet_house.product(f"sku-{number}", 1)
    given = (await quiet_house.get("/api/products?limit=1"))["nextCursor"]
    assert len((await quiet_house.get(f"/api/products?cursor={given}"))["items"]) == 1
    for path in ("/api/orders", "/api/admin/ops/assignment/attention", "/api/admin/ops/reservations/stuck"):
        assert_problem(await quiet_house.call("GET", f"{path}?cursor={given}"), 422, "invalid-cursor")


NO_ADDRESSES = ["nobody", "\u00e4@x.example", "<a@b.co>", ".a@x", "a,b@x.example", "a(b)@x.example", "a@x.", "a@\ud800"]
ADDRESSES = ["a@x", "ada.l+tea@customer.example", "o'hara@x.example", "a/b=c@x.example", "a@\u00e4.example"]


async def test_an_address_that_no_mail_can_be_sent_to_is_422_and_any_other_is_none(quiet_house: House) -> None:
    for address in NO_ADDRESSES + ADDRESSES:
        body = order_body({"tea": 1}, email=address)
        headers = {"authorization": f"Bearer {TOKENS['admin']}", "content-type": "application/json", **KEY}
        answer = await quiet_house.http.post("/api/orders", content=json.dumps(body), headers=headers)
        # There is no tea: whatever passes this far is an order that could be.
        assert_problem(answer, 422, "invalid-request" if address in NO_ADDRESSES else "unknown-sku")
        if address in NO_ADDRESSES:
            assert [each["where"] for each in answer.json()["errors"]] == ["body.email"]


async def test_an_order_that_was_taken_with_an_address_that_is_refused_by_now_is_still_the_answer_to_its_key(
    quiet_house: House,
) -> None:
    body = order_body({"tea": 1}, email="a..b@customer.example")
    taken = StartOrder.model_validate_json(json.dumps(body)).order(order_id("client", "k-taken"), 900)
    await quiet_house.sql(
        "INSERT INTO orders (order_id, request_hash, customer_id, zone, status, lines, dropoff, hold_seconds, timeline)"
        " VALUES (:order_id, :request_hash, 'c-1', 'north', 'RESERVED', '[]', '{}', 900, '[]')",
        order_id=taken.order_id,
        request_hash=taken.request_hash,
    )
    again = await quiet_house.call("POST", "/api/orders", body, role="client", headers={"Idempotency-Key": "k-taken"})
    assert (again.status_code, again.json()["orderId"]) == (200, taken.order_id), again.text
    other = await quiet_house.call("POST", "/api/orders", body, role="client", headers={"Idempotency-Key": "k-new"})
    assert_problem(other, 422, "invalid-request")


NOT_JSON = [{}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}]


async def test_a_body_that_is_not_said_to_be_json_is_415_and_told_which_header_to_send(quiet_house: House) -> None:
    authorization = {"authorization": f"Bearer {TOKENS['admin']}", **KEY}
    content = json.dumps(order_body({"tea": 1})).encode()
    for path in ("/api/orders", "/api/orders/o-1/extend", "/api/admin/deliveries/d-1/requeue"):
        for content_type in NOT_JSON:
            answer = await quiet_house.http.post(path, content=content, headers={**authorization, **content_type})
            assert_problem(answer, 415, "unsupported-media-type")
            assert "Content-Type: application/json" in answer.json()["detail"]
    headers = {**authorization, "content-type": "application/merge-patch+json; charset=utf-8"}
    known = await quiet_house.http.post("/api/orders", content=content, headers=headers)
    assert_problem(known, 422, "unknown-sku")
    empty = await quiet_house.http.post("/api/orders", headers=authorization)
    assert_problem(empty, 422, "invalid-request")


async def test_where_no_body_is_needed_one_that_is_not_said_to_be_json_counts_as_none(quiet_house: House) -> None:
    authorization = {"authorization": f"Bearer {TOKENS['admin']}"}
    openapi = (await quiet_house.http.get("/openapi.json")).json()
    optional = [
        path
        for path, methods in openapi["paths"].items()
        if "requestBody" in methods.get("post", {}) and not methods["post"]["requestBody"].get("required")
    ]
    assert {"/api/orders/{order_id}/confirm", "/api/admin/ops/reservations/sweep", "/api/admin/ops/snapshots"} <= set(
        optional
    )
    for path in (re.sub(r"{\w+}", "none", each) for each in optional):
        bare = await quiet_house.http.post(path, headers=authorization)
        for content_type in NOT_JSON:
            for content in (b"", b"{}", b"a=1"):
                answer = await quiet_house.http.post(path, content=content, headers={**authorization, **content_type})
                assert (answer.status_code, answer.json()) == (bare.status_code, bare.json()), path
        headers = {**authorization, "content-type": "application/json"}
        unknown = await quiet_house.http.post(path, content=b'{"note":"x"}', headers=headers)
        assert_problem(unknown, 422, "invalid-request")


@pytest.mark.parametrize("event_id", ["urn:uuid:00000000-0000-0000-0000-000000000000", "{0}", "0" * 32])
async def test_an_event_by_any_spelling_of_an_unknown_id_is_404(quiet_house: House, event_id: str) -> None:
    answer = await quiet_house.call("GET", f"/api/admin/ops/outbox/events/{event_id}")
    assert_problem(answer, 404, "not-found")


async def test_an_event_type_that_is_not_even_text_is_422(quiet_house: House) -> None:
    headers = {"authorization": f"Bearer {TOKENS['admin']}", "content-type": "application/json"}
    content = '{"url":"http://example.com/","eventTypes":["\\ud800"]}'
    answer = await quiet_house.http.put("/api/admin/webhooks/w", content=content, headers=headers)
    assert_problem(answer, 422, "invalid-request")


async def test_a_trailing_slash_is_another_address_and_head_is_get_without_its_body(quiet_house: House) -> None:
    assert_problem(await quiet_house.call("GET", "/api/orders/"), 404, "not-found")
    head = await quiet_house.call("HEAD", "/api/orders")
    assert (head.status_code, head.content) == (200, b"")
