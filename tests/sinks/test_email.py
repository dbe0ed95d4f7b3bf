"""E-mail over real SMTP: what the customer reads, whose fault a failure is, and that nothing settled is sent again."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from db.engine import Database, create_engine
from db.ops import check_invariants
from db.outbox import notifications
from domain.notifications import Channel, notification_key
from domain.outbox import Endpoint, ErrorClass, Message, SinkKind
from local.ports import free_port
from sinks import SendFailed
from sinks.email import EmailSink, MailServer
from tests.db.shops import Shop
from tests.mailboxes import ABORT, Mail, Mailbox
from tests.servers import throw_away_directory
from tests.sinks.doors import Answer, door

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
FROM = "Tea Shop <orders@shop.example>"
ADA = "ada@customer.example"
EVENT_ID = "019a0000-0000-7000-8000-000000000001"
ENDPOINT = Endpoint(2, "email", SinkKind.EMAIL, None, (), 0, probing=False)


def message(event_type: str = "order.confirmed", *, event_id: str = EVENT_ID, data: Any = None) -> Message:
    """An event of the order `o-1`."""
    given = data if data is not None else {"orderId": "o-1"}
    return Message(0, 7, 7, "order:o-1", event_id, f"waybill.{event_type}", "o-1", json.dumps(given), NOW, 0, 0.0)


async def order(shop: Shop, email: str | None = ADA, order_id: str = "o-1", sku: str = "tea") -> None:
    """An order's row."""
    await shop.sql(
        """
        INSERT INTO orders (order_id, request_hash, customer_id, zone, status, lines, dropoff, email, hold_seconds,
            timeline)
        VALUES (:order_id, 'h', 'c-1', 'north', 'CONFIRMED',
            jsonb_build_array(jsonb_build_object('sku', CAST(:sku AS text), 'quantity', 2)), '{}', :email, 900, '[]')
        """,
        order_id=order_id,
        sku=sku,
        email=email,
    )


def sink(shop: Shop, url: str, **more: Any) -> EmailSink:
    """A sink of the shop's."""
    return EmailSink(MailServer.of(url, FROM), shop.database, **more)


async def failure(opened: EmailSink, sent: Message | None = None) -> SendFailed:
    """How sending fails."""
    with pytest.raises(SendFailed) as caught:
        await opened.send(ENDPOINT, sent or message())
    return caught.value


@pytest_asyncio.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    """A migrated database, empty."""
    database = Database(create_engine(database_url, name="test"))
    yield Shop(database)
    await database.close()


@pytest_asyncio.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    """A mail server that takes everything."""
    async with Mailbox() as opened:
        yield opened


# --- what the customer reads


async def test_the_customer_reads_which_order_what_of_and_what_became_of_it(shop: Shop, mailbox: Mailbox) -> None:
    await order(shop)
    await sink(shop, mailbox.url).send(ENDPOINT, message())
    [mail] = mailbox.mails
    assert (mail.sender, mail.recipients) == ("orders@shop.example", (ADA,))
    headers = mail.message
    assert (headers["From"], headers["To"], headers["Subject"]) == (FROM, ADA, "Your order is confirmed (o-1)")
    assert headers["Auto-Submitted"] == "auto-generated"
    assert headers["Date"].datetime == NOW
    assert headers.get_content_type() == "text/plain"
    body = headers.get_content()
    assert "your order is confirmed" in body
    assert "Order o-1\r\n  2 x tea\r\n" in body.replace("\r\n", "\n").replace("\n", "\r\n")


@pytest.mark.parametrize(
    ("event_type", "subject"),
    [
        ("order.confirmed", "Your order is confirmed"),
        ("delivery.late", "Your order is late"),
        ("order.delivered", "Your order was delivered"),
        ("order.expired", "Your order has expired"),
        ("order.cancelled", "Your order was cancelled"),
    ],
)
async def test_each_event_has_words_of_its_own(shop: Shop, mailbox: Mailbox, event_type: str, subject: str) -> None:
    await order(shop)
    await sink(shop, mailbox.url).send(ENDPOINT, message(event_type))
    assert mailbox.got(ADA) == [subject]


async def test_nothing_is_sent_for_an_order_without_an_address(shop: Shop, mailbox: Mailbox) -> None:
    await order(shop, None)
    await sink(shop, mailbox.url).send(ENDPOINT, message())
    assert (mailbox.sessions, await shop.sql("SELECT * FROM notifications")) == (0, [])


async def test_an_orders_data_cannot_write_headers(shop: Shop, mailbox: Mailbox) -> None:
    hostile = "x\r\nBcc: eve@evil.example\r\n.\r\nMAIL FROM:<eve@evil.example>\u2028"
    await order(shop, sku=hostile)
    await sink(shop, mailbox.url).send(ENDPOINT, message())
    [mail] = mailbox.mails
    assert "Bcc" not in mail.message
    assert (mail.message["To"], mail.recipients) == (ADA, (ADA,))
    [line] = [each for each in mail.message.get_content().splitlines() if "eve" in each]
    assert line.startswith("  2 x x  Bcc: eve@evil.example")


@pytest.mark.parametrize(
    "address",
    ["ada,eve@evil.example", "a@b\r\nBcc: eve@evil.example", "<ada>@evil.example", "ada@evil.example> SIZE=1", "ada@"],
)
async def test_an_address_that_is_not_one_is_the_events_fault_and_is_never_shown(
    shop: Shop, mailbox: Mailbox, address: str
) -> None:
    await order(shop, address)
    failed = await failure(sink(shop, mailbox.url))
    assert failed.blame is ErrorClass.EVENT
    assert "evil" not in failed.detail
    assert mailbox.mails == []


# --- once


async def test_a_settled_notification_is_never_sent_again(shop: Shop, mailbox: Mailbox) -> None:
    await order(shop)
    for _ in range(3):
        await sink(shop, mailbox.url).send(ENDPOINT, message())
    assert len(mailbox.mails) == 1
    assert await shop.sql("SELECT attempts, sent_again FROM notifications WHERE sent_at IS NOT NULL") == [(1, 0)]


async def test_one_whose_fate_is_unknown_is_sent_again_with_the_same_message_id(shop: Shop, mailbox: Mailbox) -> None:
    await order(shop)
    lost = asyncio.Event()

    async def never_answer(mail: Mail) -> None:
        if len(mailbox.mails) == 1:
            await lost.wait()

    mailbox.accepted = never_answer
    failed = await failure(sink(shop, mailbox.url, timeout_seconds=0.2))
    lost.set()
    assert (failed.blame, failed.detail) == (None, "no answer within 0.2 s")
    moved = EmailSink(MailServer.of(mailbox.url, "orders@other.example"), shop.database)
    await moved.send(ENDPOINT, message())
    first, second = mailbox.mails
    assert first.message_id == second.message_id
    assert await shop.sql("SELECT attempts FROM notifications WHERE sent_at IS NOT NULL") == [(2,)]


async def test_the_message_id_shows_neither_the_event_nor_the_address(shop: Shop, mailbox: Mailbox) -> None:
    await order(shop)
    await sink(shop, mailbox.url).send(ENDPOINT, message())
    await sink(shop, mailbox.url).send(ENDPOINT, message(event_id=EVENT_ID.replace("1", "2")))
    one, other = (mail.message_id for mail in mailbox.mails)
    assert one == f"<{notification_key(EVENT_ID, ADA)}@shop.example>"
    assert one != other
    assert not any(part in one for part in (EVENT_ID, "ada", "customer"))


async def test_a_notification_sent_after_it_was_settled_breaks_a_promise(shop: Shop) -> None:
    async def begin(event_id: str) -> Any:
        return await shop.database.transact(
            lambda connection: notifications.begin(connection, event_id, Channel.EMAIL, ADA, "<m@shop.example>")
        )

    async def settle(begun: Any) -> None:
        await shop.database.transact(lambda connection: notifications.settle(connection, begun))

    # Two relays at once, the one presumed dead: neither knew, and the Message-ID makes them one.
    frozen, other = await begin(EVENT_ID), await begin(EVENT_ID)
    await settle(other)
    await settle(frozen)
    await shop.holds_together()
    assert await begin(EVENT_ID) is None
    await shop.sql("UPDATE notifications SET sent_at = now() - interval '1 hour'")
    await settle(other)
    async with shop.database.read() as connection:
        broken = [check for check in await check_invariants(connection) if check.violations]
    assert [(check.name, check.sample) for check in broken] == [("no_duplicate_notifications", [EVENT_ID])]


# --- whose fault

BLAME: list[tuple[str, str, ErrorClass | None]] = [
    ("RCPT", "550 no such user", ErrorClass.EVENT),
    ("RCPT", "451 try later", None),
    ("DATA", "554 not wanted", ErrorClass.EVENT),
    ("DATA", "452 full", None),
    ("DATA", ABORT, None),
    ("MAIL", "553 not your domain", ErrorClass.ENDPOINT),
    ("MAIL", "421 too busy", None),
    ("RCPT", ABORT, None),
]


@pytest.mark.parametrize(("step", "reply", "blame"), BLAME)
async def test_the_refusal_says_whose_fault_it_is(
    shop: Shop, mailbox: Mailbox, step: str, reply: str, blame: ErrorClass | None
) -> None:
    await order(shop)
    mailbox.replies = {step: f"{reply} {ADA}" if reply != ABORT else reply}
    failed = await failure(sink(shop, mailbox.url))
    assert failed.blame is blame
    assert ADA not in failed.detail
    if reply != ABORT:
        assert failed.detail == f"SMTP {reply[:3]} to {step}"
        assert ADA in failed.full
    mailbox.replies = {}
    await sink(shop, mailbox.url).send(ENDPOINT, message())
    assert mailbox.got(ADA) == ["Your order is confirmed"]


async def test_a_mail_server_that_cannot_be_reached_is_the_endpoints_fault(shop: Shop) -> None:
    await order(shop)
    for url in (f"smtp://127.0.0.1:{free_port()}", "smtp://nobody.invalid", f"smtps://127.0.0.1:{free_port()}"):
        assert (await failure(sink(shop, url))).blame is ErrorClass.ENDPOINT


async def greet_nobody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hang up at once."""


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Want no mail at all."""
    writer.write(b"554 no mail here\r\n")
    await writer.drain()


async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak something else."""
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await writer.drain()


@pytest.mark.parametrize(("answer", "blame"), [(greet_nobody, None), (refuse, ErrorClass.ENDPOINT), (babble, None)])
async def test_what_is_no_willing_mail_server(shop: Shop, answer: Answer, blame: ErrorClass | None) -> None:
    await order(shop)
    async with door(answer) as opened:
        assert (await failure(sink(shop, f"smtp://127.0.0.1:{opened.port}"))).blame is blame


async def test_a_worker_without_a_mail_server_leaves_the_messages_to_others(shop: Shop) -> None:
    await order(shop)
    assert (await failure(EmailSink(None, shop.database))).blame is ErrorClass.ENDPOINT


@pytest.mark.parametrize("sent", [message("order.reserved"), message(data={})])
async def test_an_event_that_tells_a_customer_nothing_is_the_events_fault(
    shop: Shop, mailbox: Mailbox, sent: Message
) -> None:
    await order(shop)
    assert (await failure(sink(shop, mailbox.url), sent)).blame is ErrorClass.EVENT


# --- TLS and log-in

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture(name="certificate", scope="module")
def _certificate() -> Iterator[Path]:
    """A certificate of 127.0.0.1's own, made for this run, with its key in the same file."""
    with throw_away_directory() as directory:
        path = directory / "mailbox.pem"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=mailbox", "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run([*command, "-keyout", path, "-out", directory / "cert.pem"], check=True, capture_output=True)
        with path.open("ab") as file:
            file.write((directory / "cert.pem").read_bytes())
        yield path


@asynccontextmanager
async def secure_mailbox(certificate: Path, *, starttls: bool) -> AsyncIterator[Mailbox]:
    """A mail server with TLS that asks for a log-in."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with Mailbox(tls=context, starttls=starttls, login="waybill:secret") as opened:
        yield opened


@needs_openssl
@pytest.mark.parametrize("starttls", [True, False])
async def test_user_and_password_go_only_through_tls_whose_certificate_is_trusted(
    shop: Shop, certificate: Path, starttls: bool
) -> None:
    await order(shop)
    trusting = ssl.create_default_context(cafile=certificate)
    async with secure_mailbox(certificate, starttls=starttls) as opened:
        distrusted = await failure(sink(shop, opened.url))
        assert (distrusted.blame, opened.mails) == (ErrorClass.ENDPOINT, [])
        assert distrusted.detail.startswith("TLS: ")
        wrong = await failure(sink(shop, opened.url.replace("secret", "wrong"), tls_context=trusting))
        assert (wrong.blame, wrong.detail) == (ErrorClass.ENDPOINT, "SMTP 535 to AUTH")
        await sink(shop, opened.url, tls_context=trusting).send(ENDPOINT, message())
        [mail] = opened.mails
        assert (mail.secure, mail.login) == (True, "waybill")


async def test_without_tls_no_password_is_sent(shop: Shop, mailbox: Mailbox) -> None:
    await order(shop)
    url = mailbox.url.replace("//", "//waybill:secret@")
    failed = await failure(sink(shop, url))
    assert failed.blame is ErrorClass.ENDPOINT
    assert "STARTTLS" in failed.detail
    assert mailbox.mails == []


async def test_a_mail_that_was_sent_and_could_not_be_recorded_is_in_doubt(shop: Shop, mailbox: Mailbox) -> None:
    await order(shop)
    await shop.sql("ALTER TABLE notifications ADD CONSTRAINT never CHECK (sent_at IS NULL)")
    failed = await failure(sink(shop, mailbox.url))
    assert (failed.in_doubt, len(mailbox.mails)) == (True, 1)
    assert ADA not in failed.full
