"""Where an event can go: one small class each, all with the same `send`."""

from __future__ import annotations

from typing import Protocol

import structlog

from domain.outbox import RETRY_AFTER_CAP_SECONDS, Endpoint, ErrorClass, Message

log = structlog.get_logger(__name__)


class SendFailed(Exception):
    """The endpoint did not take the message.

    `blame` is whose fault the failure itself shows, or None where only the fate of other lanes' events can tell.
    `detail` may be shown anywhere. `answer` is the receiver's own words, which may echo the payload: it stays in the
    database. `retry_after_seconds` is what the receiver asks for, `gone` that it will never come back.
    """

    def __init__(
        self,
        blame: ErrorClass | None,
        detail: str,
        answer: str = "",
        *,
        retry_after_seconds: float = 0.0,
        gone: bool = False,
    ) -> None:
        super().__init__(detail)
        self.blame = blame
        self.retry_after_seconds = min(retry_after_seconds, RETRY_AFTER_CAP_SECONDS)
        self.gone = gone
        self.detail = detail[:300]
        self.answer = answer[:300]

    @property
    def in_doubt(self) -> bool:
        """Whether the endpoint may have taken the message all the same."""
        return self.blame is None

    @property
    def full(self) -> str:
        """What the attempt's record says."""
        return f"{self.detail}: {self.answer}" if self.answer else self.detail


class Sink(Protocol):
    """Delivers messages of one kind of endpoint."""

    async def send(self, endpoint: Endpoint, message: Message) -> None:
        """Deliver one message, within a bounded time. Raises SendFailed; may be called again for the same message."""


async def deliver(sink: Sink, endpoint: Endpoint, message: Message) -> None:
    """Send; what a sink did not foresee is a failure like any other. Raises SendFailed only."""
    try:
        await sink.send(endpoint, message)
    except SendFailed:
        raise
    except Exception as error:
        log.exception("a sink failed unforeseen", endpoint=endpoint.name, event_id=message.event_id)
        raise SendFailed(None, type(error).__name__) from error
