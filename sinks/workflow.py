"""The internal sink: what committed in PostgreSQL reaches the workflows that wait for it."""

from __future__ import annotations

from typing import Any

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from domain.ids import ROW_CHANGED_SIGNAL, Names
from domain.outbox import Endpoint, ErrorClass, Message
from sinks import SendFailed


class WorkflowSink:
    """Signals an order's workflow with the stage that its row reached without it. Signals are idempotent."""

    def __init__(self, client: Client, names: Names) -> None:
        self._client = client
        self._names = names

    async def send(self, endpoint: Endpoint, message: Message) -> None:
        """Signal the event's workflow; one that is closed or gone needs no telling."""
        data: Any = message.data
        handle = self._client.get_workflow_handle(self._names.order(data["orderId"]))
        try:
            await handle.signal(ROW_CHANGED_SIGNAL, data["status"])
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise SendFailed(ErrorClass.ENDPOINT, f"Temporal: {error.message}") from error
