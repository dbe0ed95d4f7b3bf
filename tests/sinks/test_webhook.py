"""Webhooks over real HTTP: what counts as delivered, whose fault the rest is, and where nothing may ever connect."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio
from standardwebhooks import WebhookVerificationError

from domain.outbox import RETRY_AFTER_CAP_SECONDS, Endpoint, ErrorClass, Message, SinkKind, new_webhook_secret
from local.ports import free_port
from sinks import SendFailed
from sinks.webhook import WebhookSink, retry_after_seconds, url_problem
from tests.receivers import ABORT, Receiver, verified
from tests.sinks.doors import Answer, door, reset, saying, silence

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
SECRET = new_webhook_secret()


def message(data: Any = None) -> Message:
    payload = data if data is not None else {"orderId": "o-1", "name": "Käse 🧀"}
    return Message(
        0, 7, 7, "order:o-1", "e-1", "waybill.order.reserved", "o-1", json.dumps(payload), NOW, 0, time.time()
    )


def endpoint(url: str, *secrets: str) -> Endpoint:
    return Endpoint(1, "shop", SinkKind.WEBHOOK, url, secrets or (SECRET,), 0, probing=False)


@pytest_asyncio.fixture
async def sink() -> AsyncIterator[WebhookSink]:
    """A sink that may reach this machine, as under `make up`."""
    opened = WebhookSink(allow_private=True)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def public_sink() -> AsyncIterator[WebhookSink]:
    """A sink as in a real deployment: private ranges are refused."""
    opened = WebhookSink(allow_private=False)
    yield opened
    await opened.close()


async def failure(sink: WebhookSink, url: str, data: Any = None) -> SendFailed:
    """How sending there fails."""
    with pytest.raises(SendFailed) as caught:
        await sink.send(endpoint(url), message(data))
    return caught.value


# --- delivered


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_means_delivered(sink: WebhookSink, receiver: Receiver, status: int) -> None:
    receiver.answer = lambda event: status
    await sink.send(endpoint(receiver.url), message())
    assert [each.status for each in receiver.requests] == [status]


async def test_an_event_arrives_signed_and_as_it_was_written(sink: WebhookSink, receiver: Receiver) -> None:
    await sink.send(endpoint(receiver.url), message())
    (received,) = receiver.accepted
    event = verified(received, SECRET)
    assert (event["id"], event["data"]) == ("e-1", {"orderId": "o-1", "name": "Käse 🧀"})
    assert received.headers["webhook-id"] == "e-1"
    assert received.headers["content-type"] == "application/cloudevents+json"
    assert received.body == message().body


async def test_the_same_message_has_the_same_id_at_every_try(sink: WebhookSink, receiver: Receiver) -> None:
    for _ in range(3):
        await sink.send(endpoint(receiver.url), message())
    assert {each.headers["webhook-id"] for each in receiver.accepted} == {"e-1"}
    assert len({each.body for each in receiver.accepted}) == 1


async def test_while_a_secret_rotates_the_receiver_may_verify_with_either(
    sink: WebhookSink, receiver: Receiver
) -> None:
    new, old, other = (new_webhook_secret() for _ in range(3))
    await sink.send(endpoint(receiver.url, new, old), message())
    (received,) = receiver.accepted
    assert verified(received, new) == verified(received, old)
    with pytest.raises(WebhookVerificationError):
        verified(received, other)


# --- whose fault

BLAME: dict[ErrorClass | None, list[int]] = {
    ErrorClass.EVENT: [400, 413, 422],
    ErrorClass.ENDPOINT: [401, 403, 404, 405, 410],
    None: [302, 307, 408, 409, 429, 500, 502, 503, 504],
}


@pytest.mark.parametrize(("status", "blame"), [(status, blame) for blame in BLAME for status in BLAME[blame]])
async def test_the_answer_says_whose_fault_it_is(
    sink: WebhookSink, receiver: Receiver, status: int, blame: ErrorClass | None
) -> None:
    receiver.answer = lambda event: status
    failed = await failure(sink, receiver.url)
    assert failed.blame is blame
    assert f"HTTP {status}" in failed.detail


async def test_the_receivers_explanation_is_kept_but_not_all_of_a_long_one(sink: WebhookSink) -> None:
    text = "no such order " * 1000
    async with door(saying(f"HTTP/1.1 422 No\r\nContent-Length: {len(text)}\r\n\r\n{text}")) as opened:
        failed = await failure(sink, opened.url)
    assert failed.detail == "HTTP 422"  # what may be shown anywhere does not quote the receiver
    assert failed.full.startswith("HTTP 422: no such order")
    assert len(failed.full) <= 500


async def test_a_redirect_is_not_followed(sink: WebhookSink, receiver: Receiver) -> None:
    answer = saying(f"HTTP/1.1 307 Over There\r\nLocation: {receiver.url}\r\nContent-Length: 0\r\n\r\n")
    async with door(answer) as opened:
        failed = await failure(sink, opened.url)
    assert failed.blame is None
    assert receiver.requests == []


async def test_a_refused_connection_is_the_endpoints_fault(sink: WebhookSink) -> None:
    assert (await failure(sink, f"http://127.0.0.1:{free_port()}/")).blame is ErrorClass.ENDPOINT


async def test_a_name_that_does_not_resolve_is_the_endpoints_fault(sink: WebhookSink) -> None:
    assert (await failure(sink, "http://nobody.invalid/events")).blame is ErrorClass.ENDPOINT


async def test_a_receiver_without_tls_behind_https_is_the_endpoints_fault(
    sink: WebhookSink, receiver: Receiver
) -> None:
    assert (await failure(sink, receiver.url.replace("http:", "https:"))).blame is ErrorClass.ENDPOINT


@pytest.mark.parametrize(
    "answer",
    [reset, saying(""), saying("what?"), saying("HTTP/1.1 200"), saying("HTTP/1.1 500 No\r\n")],
    ids=["reset", "closed", "no HTTP", "half a line", "half a head"],
)
async def test_a_connection_that_breaks_off_may_be_anybodys_fault(sink: WebhookSink, answer: Answer) -> None:
    async with door(answer) as opened:
        assert (await failure(sink, opened.url)).blame is None


async def test_an_aborted_request_may_be_anybodys_fault(sink: WebhookSink, receiver: Receiver) -> None:
    receiver.answer = lambda event: ABORT
    assert (await failure(sink, receiver.url)).blame is None


async def test_a_receiver_that_never_answers_may_be_anybodys_fault() -> None:
    impatient = WebhookSink(allow_private=True, timeout_seconds=0.2)
    try:
        async with door(silence) as opened:
            failed = await failure(impatient, opened.url)
    finally:
        await impatient.close()
    assert (failed.blame, failed.detail) == (None, "no answer within 0.2 s")


@pytest.mark.parametrize("status", [400, 401])
async def test_an_answer_counts_even_if_its_explanation_never_comes(status: int) -> None:
    async def answer(reader: Any, writer: Any) -> None:
        writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 10\r\n\r\n".encode())
        await silence(reader, writer)

    impatient = WebhookSink(allow_private=True, timeout_seconds=0.2)
    try:
        async with door(answer) as opened:
            failed = await failure(impatient, opened.url)
    finally:
        await impatient.close()
    assert failed.blame is {400: ErrorClass.EVENT, 401: ErrorClass.ENDPOINT}[status]


# --- where nothing may ever connect

LOOPBACK = [
    "127.0.0.1", "127.0.0.2", "127.255.255.254", "127.0.0.1.",  # plain
    "2130706433", "017700000001", "0x7f000001", "0X7F000001", "127.1", "127.0.1", "0177.0.0.1", "0x7f.0.0.1", "0x7f.1",
    "0", "0.0.0.0", "00000000", "[::]",  # noqa: S104 - "any address" connects to this machine
    "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:0001]",
    "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::ffff:0:127.0.0.1]",
    "localhost", "localhost.", "LocalHost",  # names that resolve to it
    "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "①②⑦.⓪.⓪.①", "１２７.0.0.1", "127。0。0。1", "ⓛocalhost",  # as IDNA reads it
]  # fmt: skip
PRIVATE = [
    "10.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.1.1", "100.64.0.1", "192.0.0.1", "198.18.0.1", "240.0.0.1",
    "255.255.255.255", "224.0.0.1", "169.254.169.254", "2852039166", "0xa9fea9fe", "169.16689662", "[fe80::1]",
    "[fd00:ec2::254]", "[fc00::1]", "[ff02::1]", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[2002:a9fe:a9fe::]",
    "[64:ff9b::a9fe:a9fe]", "[fec0::1]", "[::ffff:10.0.0.1]",
]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACK)
async def test_this_machine_is_never_connected_to_however_it_is_spelled(public_sink: WebhookSink, host: str) -> None:
    async with door(saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as opened:
        failed = await failure(public_sink, f"http://{host}:{opened.port}/latest/meta-data")
        assert opened.knocks == 0
    assert failed.blame is ErrorClass.ENDPOINT


@pytest.mark.parametrize("host", PRIVATE)
async def test_private_ranges_are_refused_before_anything_is_sent(public_sink: WebhookSink, host: str) -> None:
    failed = await failure(public_sink, f"http://{host}/latest/meta-data")
    assert failed.blame is ErrorClass.ENDPOINT
    assert "private" in failed.detail


@pytest.mark.parametrize(
    "form",
    [
        "http://user@127.0.0.1:{port}/", "http://user:password@127.0.0.1:{port}/", "http://@127.0.0.1:{port}/",
        "http://public.example#@127.0.0.1:{port}/", "http://public.example\\@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@public.example/", "http://127.0.0.1:{port}#@public.example/",
        "http://127.0.0.1:{port}?@public.example/", "http:\\\\127.0.0.1:{port}/", "http:127.0.0.1:{port}/",
        "http:/127.0.0.1:{port}/", "http:///127.0.0.1:{port}/", "//127.0.0.1:{port}/", "127.0.0.1:{port}", "",
        "HTTP://127.0.0.1:{port}/", " http://127.0.0.1:{port}/", "ht\ntp://127.0.0.1:{port}/", "http://\t127.0.0.1:{port}/",
        "ftp://127.0.0.1:{port}/", "file:///etc/passwd", "gopher://127.0.0.1:{port}/_x", "ws://127.0.0.1:{port}/",
        "unix:///var/run/docker.sock", "javascript:alert(1)", "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
        "http://[::1:{port}/", "http://127.0.0.1:99999/", "http://127.0.0.1:x/",
    ],
)  # fmt: skip
async def test_no_form_of_url_smuggles_a_connection_to_this_machine(public_sink: WebhookSink, form: str) -> None:
    async with door(saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as opened:
        failed = await failure(public_sink, form.format(port=opened.port))
        assert opened.knocks == 0
    assert failed.blame is ErrorClass.ENDPOINT


@pytest.mark.parametrize(
    ("url", "allow_private", "problem"),
    [
        ("https://shop.example/events?x=1", False, None),
        ("http://93.184.216.34:8080/", False, None),
        ("https://[2606:4700::1111]/", False, None),
        ("http://localhost:9000/", True, None),
        ("http://127.0.0.1/", True, None),
        ("http://10.0.0.1/", True, None),
        ("http://127.0.0.1/", False, "The address 127.0.0.1 is private"),
        ("http://2130706433/", False, "The address 127.0.0.1 is private"),
        ("http://user:password@shop.example/", True, "credentials"),
        ("ftp://shop.example/", True, "scheme"),
        ("shop.example/events", True, "scheme"),
        ("https:///events", True, "no host"),
        ("http://[::1/", True, "cannot be read"),
        ("http://shop.example:99999/", True, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_when_it_is_set(url: str, allow_private: bool, problem: str | None) -> None:
    said = url_problem(url, allow_private=allow_private)
    assert said is None if problem is None else said is not None and problem in said


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("120", 120),
        ("0", 0),
        ("Mon, 04 May 2026 12:02:00 GMT", 120),
        ("Mon, 04 May 2026 11:00:00 GMT", 0),
        ("Mon, 04 May 2026 12:02:00", 120),
        ("-5", 0),
        ("soon", 0),
        ("9" * 400, 999_999_999),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date_and_nonsense_as_nothing(header: str | None, seconds: float) -> None:
    assert retry_after_seconds(header, NOW.timestamp()) == seconds


async def test_what_a_receiver_asks_for_is_respected_within_bounds(sink: WebhookSink) -> None:
    answer = saying("HTTP/1.1 503 Busy\r\nRetry-After: 86400\r\nContent-Length: 0\r\n\r\n")
    async with door(answer) as opened:
        with pytest.raises(SendFailed) as caught:
            await sink.send(endpoint(opened.url), message())
    assert (caught.value.retry_after_seconds, caught.value.gone) == (RETRY_AFTER_CAP_SECONDS, False)


async def test_410_says_that_the_endpoint_is_gone(sink: WebhookSink) -> None:
    async with door(saying("HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")) as opened:
        with pytest.raises(SendFailed) as caught:
            await sink.send(endpoint(opened.url), message())
    assert (caught.value.blame, caught.value.gone) == (ErrorClass.ENDPOINT, True)


class Names:
    """A name server that changes its mind: the addresses of each look-up in turn."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def __call__(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        """Answer a look-up."""
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.answers.pop(0), port))]


async def test_a_name_that_changes_after_the_check_leads_nowhere_else() -> None:
    names = Names("127.0.0.1", "127.0.0.2")
    sink = WebhookSink(allow_private=True, lookup=names)
    try:
        async with Receiver() as receiver:
            await sink.send(endpoint(receiver.url.replace("127.0.0.1", "receiver.example")), message())
            assert len(receiver.accepted) == 1
        assert names.answers == ["127.0.0.2"]  # it was asked once, and what it said was connected to
    finally:
        await sink.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "224.0.0.1"])
async def test_a_name_that_leads_inside_is_refused_whatever_it_said_before(address: str) -> None:
    sink = WebhookSink(allow_private=False, lookup=Names(address))
    try:
        with pytest.raises(SendFailed) as caught:
            await sink.send(endpoint("http://receiver.example/events"), message())
        assert caught.value.blame is ErrorClass.ENDPOINT
    finally:
        await sink.close()
