"""Notifications to customers by SMTP, one message per event and recipient."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as MAIL_POLICY
from email.utils import format_datetime
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import aiosmtplib
from aiosmtplib import SMTPException, SMTPRecipientsRefused, SMTPResponseException

from db.engine import DATABASE_ERRORS, Database, error_code
from db.outbox import notifications
from db.outbox.notifications import Begun
from domain.notifications import Channel, Notification, mail_address, notification, notification_key
from domain.outbox import Endpoint, ErrorClass, Message
from sinks import SendFailed

TIMEOUT_SECONDS = 10.0
_GOODBYE_SECONDS = 1.0
_PATIENCE = 2
"""Time-outs to wait for a free connection."""
_CONNECTIONS = 10
"""At a time and worker: mail servers refuse a client that opens many."""


@dataclass(frozen=True)
class MailServer:
    """Where messages are handed over, and who sends them."""

    hostname: str
    port: int
    tls: bool
    """From the first byte (`smtps`). Otherwise STARTTLS wherever the server offers it; with a user, never without."""
    username: str | None
    password: str | None
    sender: Address

    @classmethod
    def of(cls, smtp_url: str, mail_from: str) -> MailServer:
        """From the settings, which have been checked."""
        parts = urlsplit(smtp_url)
        tls = parts.scheme == "smtps"
        username = unquote(parts.username) if parts.username else None
        password = unquote(parts.password or "") if username else None
        port = parts.port or (465 if tls else 587 if username else 25)
        header: Any = MAIL_POLICY.header_factory("From", mail_from)
        return cls(parts.hostname or "", port, tls, username, password, header.addresses[0])


class EmailSink:
    """Tells an order's customer of an event. Without a server e-mail is off."""

    def __init__(
        self,
        server: MailServer | None,
        database: Database,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        self._server = server
        self._database = database
        self._timeout_seconds = timeout_seconds
        self._tls_context = tls_context or ssl.create_default_context()
        self._free = asyncio.Semaphore(_CONNECTIONS)

    async def send(self, endpoint: Endpoint, message: Message) -> None:
        """Send what was not sent yet; a settled notification is left alone. Raises SendFailed.

        An attempt that nobody saw the end of is made again with the same Message-ID.
        """
        if self._server is None:
            raise SendFailed(ErrorClass.ENDPOINT, "this worker has no WAYBILL_SMTP_URL")
        try:
            told = await self._compose(message)
            if told is None:
                return
            async with self._connection():
                begun = await self._begin(told, self._server)
                if begun is not None:
                    await self._deliver(told, begun, self._server)
        except DATABASE_ERRORS as error:
            raise SendFailed(ErrorClass.ENDPOINT, f"PostgreSQL: {error_code(error)}") from error

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[None]:
        """One of the few. Where none comes free the server hangs, and who waits would wait for all before them."""
        try:
            await asyncio.wait_for(self._free.acquire(), self._timeout_seconds * _PATIENCE)
        except TimeoutError:
            raise SendFailed(ErrorClass.ENDPOINT, "no connection came free") from None
        try:
            yield
        finally:
            self._free.release()

    async def _compose(self, message: Message) -> Notification | None:
        """The order's row knows the address and the lines; events do not carry the address."""
        data: Any = message.data
        try:
            order_id = str(data["orderId"])
            async with self._database.read() as connection:
                found = await notifications.addressee(connection, order_id)
            if found is None:
                return None
            return notification(
                message.event_id, message.event_type, message.occurred_at, order_id, found.lines, found.email
            )
        except (LookupError, TypeError) as error:
            raise SendFailed(ErrorClass.EVENT, "the event says nothing that a customer is told") from error

    async def _begin(self, told: Notification, server: MailServer) -> Begun | None:
        message_id = f"<{notification_key(told.event_id, told.recipient)}@{server.sender.domain}>"
        return await self._database.transact(
            partial(
                notifications.begin,
                event_id=told.event_id,
                channel=Channel.EMAIL,
                recipient=told.recipient,
                message_id=message_id,
            )
        )

    async def _deliver(self, told: Notification, begun: Begun, server: MailServer) -> None:
        mail = _mail(told, begun.message_id, server.sender)
        client = self._client(server)
        try:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    await client.connect()
                    await client.send_message(mail, sender=server.sender.addr_spec, recipients=[told.recipient])
            except TimeoutError:  # aiosmtplib's own are such as well
                client.close()
                raise SendFailed(None, f"no answer within {self._timeout_seconds:g} s") from None
            except (SMTPException, OSError, ValueError) as error:
                raise _failure(error) from error
            try:
                await self._database.transact(partial(notifications.settle, begun=begun))
            except DATABASE_ERRORS as error:  # it has been sent
                raise SendFailed(None, f"sent, but not recorded: PostgreSQL: {error_code(error)}") from error
        finally:
            await _leave(client)

    def _client(self, server: MailServer) -> aiosmtplib.SMTP:
        return aiosmtplib.SMTP(
            hostname=server.hostname,
            port=server.port,
            username=server.username,
            password=server.password,
            # What EHLO says; this machine's own name would take a look-up.
            local_hostname=server.sender.domain,
            timeout=self._timeout_seconds,
            use_tls=server.tls,
            start_tls=_start_tls(server),
            tls_context=self._tls_context,
        )


def _start_tls(server: MailServer) -> bool | None:
    """None: wherever it is offered."""
    if server.tls:
        return False
    return True if server.username else None


async def _leave(client: aiosmtplib.SMTP) -> None:
    """Say goodbye, as RFC 5321 asks; nothing depends on the answer."""
    if client.is_connected:
        with contextlib.suppress(SMTPException, OSError):
            await client.quit(timeout=_GOODBYE_SECONDS)
    client.close()


def _mail(told: Notification, message_id: str, sender: Address) -> EmailMessage:
    """The message, the same in every attempt. Raises SendFailed for a recipient that cannot be written in a header."""
    mail = EmailMessage(policy=MAIL_POLICY)
    try:
        mail["To"] = mail_address(told.recipient)
        mail["Subject"] = told.subject
    except ValueError as error:
        raise SendFailed(ErrorClass.EVENT, "the recipient's address cannot be written to") from error
    mail["From"] = sender
    mail["Date"] = format_datetime(told.occurred_at)
    mail["Message-ID"] = message_id
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(told.body)
    return mail


def _failure(error: Exception) -> SendFailed:
    """Whose fault it is. A server's words may echo the address: they are kept apart."""
    if isinstance(error, SMTPRecipientsRefused):
        return _refused(error.recipients[0], "RCPT", ErrorClass.EVENT)
    if isinstance(error, aiosmtplib.SMTPDataError):
        return _refused(error, "DATA", ErrorClass.EVENT)
    if isinstance(error, SMTPResponseException):
        steps = {aiosmtplib.SMTPSenderRefused: "MAIL", aiosmtplib.SMTPAuthenticationError: "AUTH"}
        return _refused(error, steps.get(type(error), "the connection"), ErrorClass.ENDPOINT)
    # A connection that was never had is the server's fault; one that breaks off may be anybody's.
    cause = error.__cause__ if isinstance(error, aiosmtplib.SMTPConnectError) else error
    if isinstance(cause, ssl.SSLError):
        return SendFailed(ErrorClass.ENDPOINT, f"TLS: {getattr(cause, 'verify_message', None) or cause.reason}")
    if isinstance(cause, ConnectionResetError | aiosmtplib.SMTPServerDisconnected):
        return SendFailed(None, "the connection broke off")
    if isinstance(cause, OSError):
        return SendFailed(ErrorClass.ENDPOINT, f"no connection: {type(cause).__name__}", str(cause))
    if isinstance(error, aiosmtplib.SMTPNotSupported | ValueError):
        return SendFailed(ErrorClass.EVENT, "the server cannot take the recipient's address", str(error))
    return SendFailed(ErrorClass.ENDPOINT, str(error))  # no STARTTLS, or no log-in, where the URL asks for it


def _refused(error: SMTPResponseException, step: str, blame: ErrorClass) -> SendFailed:
    """5xx is for good; 4xx, and what is no answer at all, may be better the next time."""
    permanent = 500 <= error.code <= 599
    return SendFailed(blame if permanent else None, f"SMTP {error.code} to {step}", error.message)
