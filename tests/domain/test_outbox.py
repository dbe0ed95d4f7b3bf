"""Events as they travel: envelope, signature, lanes, blame and the times of the next tries."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from domain.outbox import (
    ENDPOINT_DELAY_CAP_SECONDS,
    PUBLIC_TYPES,
    SHARDS,
    ErrorClass,
    EventType,
    Message,
    MessageStatus,
    blame_of_status,
    breaker_delay_seconds,
    cloud_event,
    failure_fingerprint,
    inventory_event,
    message_id,
    new_webhook_secret,
    order_event,
    parse_message_id,
    payload_problem,
    retry_delay_seconds,
    rfc3339,
    shard_of,
    wanted_by_workflows,
    webhook_signature,
)

NOON = datetime(2026, 5, 4, 12, 0, 0, 250_000, tzinfo=UTC)

# --- words


def test_the_event_types_that_webhooks_receive_are_the_contracts() -> None:
    nouns = {
        "order": ["reserved", "confirmed", "expired", "cancelled", "delivered"],
        "delivery": ["requested", "offered", "assigned", "picked_up", "late", "cancelled"],
        "inventory": ["adjusted", "reconciled"],
    }
    assert {str(each) for each in PUBLIC_TYPES} == {f"waybill.{noun}.{what}" for noun in nouns for what in nouns[noun]}


def test_the_message_states_are_the_contracts() -> None:
    assert {str(each) for each in MessageStatus} == {"PENDING", "RETRYING", "FAILED", "DELIVERED", "IGNORED"}


# --- lanes


def test_events_of_an_order_and_of_its_delivery_share_a_lane_and_name_the_order() -> None:
    confirmed = order_event(EventType.ORDER_CONFIRMED, "o-1", "o-1", {"status": "CONFIRMED"})
    requested = order_event(EventType.DELIVERY_REQUESTED, "d-1", "o-1", {"deliveryId": "d-1"})
    assert confirmed.lane == requested.lane
    assert (confirmed.subject, requested.subject) == ("o-1", "d-1")
    assert confirmed.data == {"orderId": "o-1", "status": "CONFIRMED"}
    assert requested.data == {"orderId": "o-1", "deliveryId": "d-1"}


def test_a_product_has_a_lane_of_its_own_even_when_it_is_called_like_an_order() -> None:
    adjusted = inventory_event(EventType.INVENTORY_ADJUSTED, "o-1", {"stock": 3})
    assert adjusted.lane != order_event(EventType.ORDER_RESERVED, "o-1", "o-1", {}).lane
    assert (adjusted.subject, adjusted.data) == ("o-1", {"sku": "o-1", "stock": 3})


def test_every_event_has_an_id_of_its_own() -> None:
    made = {order_event(EventType.ORDER_RESERVED, "o-1", "o-1", {}).event_id for _ in range(100)}
    assert len(made) == 100


def test_workflows_are_told_only_what_happened_without_them() -> None:
    assert not wanted_by_workflows(order_event(EventType.ORDER_EXPIRED, "o-1", "o-1", {}))
    assert wanted_by_workflows(order_event(EventType.ORDER_EXPIRED, "o-1", "o-1", {}, outside=True))


@pytest.mark.parametrize(("lane", "shard"), [("order:o-1", 3), ("order:o-2", 1), ("sku:tea", 3), ("sku:Käse", 2)])
def test_a_lane_keeps_its_shard_between_releases(lane: str, shard: int) -> None:
    assert shard_of(lane) == shard


@settings(derandomize=True, max_examples=100, database=None)
@given(st.text())
def test_every_lane_has_a_shard_that_exists(lane: str) -> None:
    assert shard_of(lane) in range(SHARDS)


def test_lanes_spread_over_all_shards() -> None:
    assert {shard_of(f"order:o-{number}") for number in range(100)} == set(range(SHARDS))


# --- message ids


@settings(derandomize=True, max_examples=100, database=None)
@given(st.integers(0, 10**18 - 1), st.integers(0, 2**31 - 1))
def test_a_message_id_reads_back_as_it_was_written(position: int, endpoint_id: int) -> None:
    assert parse_message_id(message_id(position, endpoint_id)) == (position, endpoint_id)


@pytest.mark.parametrize(
    "garbage",
    ["", "-", "1", "1-", "-1", "--1", "1--1", "1-2-3", "a-b", "1-b", " 1-1", "1-1 ", "1-1\n", "+1-1", "1_0-1", "1.0-1",
     "١-١", "²-1", "0x1-1", "1" * 19 + "-1", "1-2147483648", "1-" + "9" * 18, "\0-1", "1–1"],
)  # fmt: skip
def test_what_cannot_be_a_message_id_is_none(garbage: str) -> None:
    assert parse_message_id(garbage) is None


@settings(derandomize=True, max_examples=300, database=None)
@given(st.text(alphabet="0123456789-+_ a\0²", max_size=30) | st.text())
def test_whatever_is_read_as_a_message_id_fits_into_the_database(text: str) -> None:
    key = parse_message_id(text)
    assert key is None or (0 <= key[0] < 2**63 and 0 <= key[1] < 2**31)


# --- blame

BLAME = {
    ErrorClass.EVENT: [400, 413, 422],
    ErrorClass.ENDPOINT: [401, 403, 404, 405, 410],
    None: [300, 301, 302, 304, 307, 308, 402, 406, 408, 409, 418, 425, 429, 451, 500, 501, 502, 503, 504, 507, 599],
}


@pytest.mark.parametrize(("status", "blame"), [(status, blame) for blame in BLAME for status in BLAME[blame]])
def test_the_http_status_says_whose_fault_it_is(status: int, blame: ErrorClass | None) -> None:
    assert blame_of_status(status) is blame


# --- when to try again


def schedule(error_class: ErrorClass) -> list[float]:
    """The waits between the tries of a message that never passes."""
    waits: list[float] = []
    while (wait := retry_delay_seconds(error_class, len(waits) + 1)) is not None:
        waits.append(wait)
        assert len(waits) < 100, "it never fails"
    return waits


def test_an_unusable_event_is_tried_three_times_within_20_seconds_then_failed() -> None:
    waits = schedule(ErrorClass.EVENT)
    assert len(waits) + 1 == 3
    assert 0 < sum(waits) < 20


def test_an_unknown_error_is_tried_eight_times_over_about_ten_minutes_then_failed() -> None:
    waits = schedule(ErrorClass.UNKNOWN)
    assert len(waits) + 1 == 8
    assert 9 * 60 <= sum(waits) <= 11 * 60
    assert waits == sorted(waits)


@pytest.mark.parametrize("attempts", [1, 2, 3, 8, 100, 100_000])
def test_the_endpoints_fault_never_fails_a_message(attempts: int) -> None:
    wait = retry_delay_seconds(ErrorClass.ENDPOINT, attempts)
    assert wait is not None
    assert 0 < wait <= 30


@pytest.mark.parametrize("attempts", [4, 5, 100])
def test_an_event_past_its_tries_stays_failed(attempts: int) -> None:
    assert retry_delay_seconds(ErrorClass.EVENT, attempts) is None


def test_the_breakers_delay_doubles_up_to_the_cap() -> None:
    delays = [breaker_delay_seconds(failures) for failures in range(1, 9)]
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30]
    assert ENDPOINT_DELAY_CAP_SECONDS == 30


def test_the_breakers_delay_stays_at_the_cap_after_days_of_failing() -> None:
    assert breaker_delay_seconds(1_000_000) == 30


# --- the envelope


def test_an_event_travels_as_a_cloud_event() -> None:
    payload = '{"orderId": "o-1"}'
    message = Message(0, 7, 7, "order:o-1", "e-1", "waybill.order.reserved", "o-1", payload, NOON, 0, 0.0)
    assert message.data == {"orderId": "o-1"}
    assert json.loads(message.body) == {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/waybill",
        "type": "waybill.order.reserved",
        "subject": "o-1",
        "time": "2026-05-04T12:00:00.250000Z",
        "datacontenttype": "application/json",
        "data": {"orderId": "o-1"},
    }


def test_the_same_message_is_the_same_bytes_at_every_try() -> None:
    def body(attempts: int) -> bytes:
        return Message(0, 7, 7, "sku:tea", "e-1", "t", "tea", '{"b": 1, "a": [2]}', NOON, attempts, 1.0 * attempts).body

    assert body(0) == body(5)


def test_text_beyond_ascii_travels_as_utf_8() -> None:
    assert "Käse 🧀".encode() in cloud_event("e-1", "t", "s", NOON, '{"name": "Käse 🧀"}')


@pytest.mark.parametrize("hours", [-8, 0, 2, 5.5])
def test_times_are_written_in_utc(hours: float) -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=hours)))
    assert rfc3339(elsewhere) == "2026-05-04T12:00:00.250000Z"


# --- signatures

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_signature_of_the_specifications_example_is_the_specifications() -> None:
    signature = webhook_signature(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def headers(secret: str, body: bytes) -> dict[str, str]:
    now = int(time.time())
    signature = webhook_signature(secret, "e-1", now, body)
    return {"webhook-id": "e-1", "webhook-timestamp": str(now), "webhook-signature": signature}


def test_a_signed_event_is_verified_by_the_standard_webhooks_library() -> None:
    secret = new_webhook_secret()
    body = cloud_event("e-1", "waybill.order.reserved", "o-1", NOON, '{"name": "Käse 🧀"}')
    assert Webhook(secret).verify(body, headers(secret, body)) == json.loads(body)


def test_a_changed_body_is_no_longer_genuine() -> None:
    secret = new_webhook_secret()
    signed = headers(secret, b'{"stock":1}')
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(b'{"stock":2}', signed)


def test_a_signature_by_another_secret_is_not_genuine() -> None:
    with pytest.raises(WebhookVerificationError):
        Webhook(new_webhook_secret()).verify(b"{}", headers(new_webhook_secret(), b"{}"))


def test_a_new_secret_is_long_enough_and_new_every_time() -> None:
    made = {new_webhook_secret() for _ in range(100)}
    assert len(made) == 100
    keys = [base64.b64decode(secret.removeprefix("whsec_"), validate=True) for secret in made]
    assert {len(key) for key in keys} == {24}


# --- fixes


def test_an_event_that_takes_anothers_place_says_so() -> None:
    event = json.loads(cloud_event("e-2", "waybill.order.reserved", "o-1", NOON, '{"orderId": "o-1"}', "e-1"))
    assert (event["id"], event["fixes"]) == ("e-2", "e-1")
    assert "fixes" not in json.loads(cloud_event("e-1", "waybill.order.reserved", "o-1", NOON, "{}"))


ORDER = {"orderId": "o-1", "status": "CONFIRMED", "customerId": "c-1", "zone": "north", "lines": [{"sku": "tea"}]}
DELIVERY = {"orderId": "o-1", "deliveryId": "d-1", "zone": "north", "status": "ASSIGNED", "courierId": "ada"}
PRODUCT = {"sku": "tea", "stock": 3}


@pytest.mark.parametrize(
    ("original", "change", "told"),
    [
        (ORDER, {}, None),
        (ORDER, {"customerId": "c-2", "lines": [], "note": "by hand"}, None),
        (DELIVERY, {"courierId": None}, None),
        (PRODUCT, {"stock": "none"}, None),
        (ORDER, {"orderId": "o-2"}, "'orderId'"),
        (ORDER, {"customerId": 7}, "'customerId'"),
        (ORDER, {"lines": {}}, "'lines'"),
        (DELIVERY, {"deliveryId": "d-2"}, "'deliveryId'"),
        (PRODUCT, {"sku": "coffee"}, "'sku'"),
        (PRODUCT, {"note": "x" * 70_000}, "larger than 64 KiB"),
    ],
    ids=str,
)
def test_a_payload_keeps_what_receivers_rely_on(
    original: dict[str, object], change: dict[str, object], told: str | None
) -> None:
    problem = payload_problem(original, {**original, **change})
    assert (problem is None) if told is None else (told in (problem or ""))


@pytest.mark.parametrize("name", ORDER)
def test_a_payload_that_lacks_what_order_events_always_carry_is_refused(name: str) -> None:
    assert payload_problem(ORDER, {key: value for key, value in ORDER.items() if key != name})


# --- groups


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("HTTP 400: order 17 is unknown", "HTTP 400: order 4711 is unknown", True),
        (
            f"HTTP 400: {'0' * 8}-aaaa-bbbb-cccc-{'d' * 12} no",
            f"HTTP 400: {'1' * 8}-abcd-efab-cdef-{'a' * 12} no",
            True,
        ),
        ("HTTP 422: {'zone': 'north'}", "HTTP 422: {'zone': 'south pole'}", True),
        ('HTTP 422: {"zone":"north"}', 'HTTP 422: {"zone":"sou', True),
        ("HTTP 422: can't find 'a'", "HTTP 422: can't find 'b'", True),
        ("HTTP 400: o-5c47a2 no", "HTTP 400: o-91bb00 no", True),
        ("HTTP 400: no", "HTTP 422: no", False),
        ("HTTP 400: no zone", "HTTP 400: no lines", False),
        ("", "ServerDisconnectedError: Server disconnected", False),
    ],
)
def test_failures_are_alike_whatever_ids_and_values_their_errors_name(one: str, other: str, same: bool) -> None:
    def fingerprint(error: str) -> str:
        return failure_fingerprint("waybill.order.reserved", 1, ErrorClass.EVENT, error)

    assert (fingerprint(one) == fingerprint(other)) is same


def test_failures_of_another_type_endpoint_or_class_are_not_alike() -> None:
    kinds = [
        ("waybill.order.reserved", 1, ErrorClass.EVENT),
        ("waybill.order.confirmed", 1, ErrorClass.EVENT),
        ("waybill.order.reserved", 11, ErrorClass.EVENT),
        ("waybill.order.reserved", 1, ErrorClass.UNKNOWN),
    ]
    assert len({failure_fingerprint(*kind, "HTTP 400") for kind in kinds}) == 4
