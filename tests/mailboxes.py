"""A mail server over real SMTP: it remembers what it accepted, and fails as a test says."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP as MAIL_POLICY
from typing import Any, Self

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.waiting import eventually

ABORT = "abort"
"""A reply that is none: the connection is closed."""


@dataclass(frozen=True)
class Mail:
    """One message as it was accepted."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    secure: bool
    login: str | None

    @property
    def message(self) -> EmailMessage:
        """Its headers and body."""
        return message_from_bytes(self.content, policy=MAIL_POLICY)

    @property
    def message_id(self) -> str:
        """By which repeats are known."""
        return str(self.message["Message-ID"])

    @property
    def subject(self) -> str:
        """Its subject without what stands in parentheses behind it."""
        return str(self.message["Subject"]).partition(" (")[0]


class Mailbox:
    """Listens on a free loopback port. `replies` maps a step (MAIL, RCPT, DATA) to its reply instead of success."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, starttls: bool = True, login: str | None = None) -> None:
        """`tls`: with a certificate, from the first byte or by STARTTLS. `login`: the `user:password` it asks for."""
        self.mails: list[Mail] = []
        self.sessions = 0
        self.replies: dict[str, str] = {}
        self.reply: Callable[[str, str], str | None] = lambda step, address: self.replies.get(step)
        self.accepted: Callable[[Mail], Awaitable[None]] = _nothing
        """Called when a message is accepted and remembered, before the client is told so."""
        self._tls, self._starttls, self._login = tls, starttls, login
        self._server: asyncio.Server | None = None
        self._visits: set[SMTP] = set()

    async def __aenter__(self) -> Self:
        """Listen."""
        listening = None if self._starttls else self._tls
        self._server = await asyncio.get_running_loop().create_server(self._visit, "127.0.0.1", 0, ssl=listening)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening; hang up."""
        assert self._server is not None
        self._server.close()
        for visit in self._visits:
            _hang_up(visit)
        await self._server.wait_closed()

    def _visit(self) -> SMTP:
        self.sessions += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # aiosmtpd warns of a log-in without STARTTLS, and knows no other TLS
            visit = SMTP(
                self,
                hostname="mailbox.example",
                loop=asyncio.get_running_loop(),
                tls_context=self._tls if self._starttls else None,
                auth_required=self._login is not None,
                auth_require_tls=self._starttls,
                authenticator=self._authenticate,
            )
        self._visits.add(visit)
        return visit

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Its WAYBILL_SMTP_URL."""
        scheme = "smtp" if self._starttls else "smtps"
        login = f"{self._login}@" if self._login else ""
        return f"{scheme}://{login}127.0.0.1:{self.port}"

    def got(self, recipient: str) -> list[str]:
        """Subjects of what one recipient got, in order."""
        return [mail.subject for mail in self.mails if recipient in mail.recipients]

    def mails_once(self, recipient: str) -> list[str]:
        """The same as a mail reader shows it, who drops what carries a Message-ID that it knows."""
        first: dict[str, str] = {}
        for mail in self.mails:
            if recipient in mail.recipients:
                first.setdefault(mail.message_id, mail.subject)
        return list(first.values())

    async def holds(self, count: int, timeout_seconds: float = 10.0) -> None:
        """Wait until so many messages were accepted."""

        async def arrived() -> bool:
            return len(self.mails) >= count

        await eventually(arrived, timeout_seconds)
        assert len(self.mails) == count

    # --- what aiosmtpd calls

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        given = f"{data.login.decode()}:{data.password.decode()}"
        session.waybill_login = data.login.decode()  # type: ignore[attr-defined]
        return AuthResult(success=given == self._login, handled=False)

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if refused := self._reply(server, "MAIL", address):
            return refused
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if refused := self._reply(server, "RCPT", address):
            return refused
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if refused := self._reply(server, "DATA", envelope.rcpt_tos[0]):
            return refused
        assert isinstance(envelope.content, bytes)
        login = getattr(session, "waybill_login", None)
        recipients = tuple(str(each) for each in envelope.rcpt_tos)
        mail = Mail(str(envelope.mail_from), recipients, envelope.content, _is_secure(server), login)
        self.mails.append(mail)
        await self.accepted(mail)
        return "250 accepted"

    def _reply(self, server: SMTP, step: str, address: str) -> str | None:
        reply = self.reply(step, address)
        if reply == ABORT:
            _hang_up(server)
            return "421 gone"
        return reply


def _is_secure(visit: SMTP) -> bool:
    return visit.transport is not None and visit.transport.get_extra_info("sslcontext") is not None


def _hang_up(visit: SMTP) -> None:
    transport = visit.transport
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()


async def _nothing(mail: Mail) -> None:
    pass
