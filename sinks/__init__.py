"""Where an event can go: one small class each, all with the same `send`."""

from __future__ import annotations

from typing import Protocol

from domain.outbox import Endpoint, ErrorClass, Message


class SendFailed(Exception):
    """The endpoint did not take the message.

    `blame` is whose fault the failure itself shows, or None where only the fate of other lanes' events can tell.
    """

    def __init__(self, blame: ErrorClass | None, detail: str) -> None:
        super().__init__(detail)
        self.blame = blame
        self.detail = detail[:500]


class Sink(Protocol):
    """Delivers messages of one kind of endpoint."""

    async def send(self, endpoint: Endpoint, message: Message) -> None:
        """Deliver one message, within a bounded time. Raises SendFailed; may be called again for the same message."""
