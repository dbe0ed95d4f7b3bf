"""The internal sink: what committed in PostgreSQL reaches the workflows that wait for it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from functools import partial
from typing import Any

from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes, WorkflowIDConflictPolicy
from temporalio.service import RPCError, RPCStatusCode

from db.assignment import zones
from db.engine import DATABASE_ERRORS, Database, error_code
from domain.ids import (
    DISPATCH_RULE,
    DISPATCH_RULE_MEMO,
    DISPATCH_WORKFLOW,
    ROW_CHANGED_SIGNAL,
    WAKE_SIGNAL,
    ZONE_ATTRIBUTE,
    Names,
)
from domain.outbox import ZONE_TYPES, Endpoint, ErrorClass, Message
from sinks import SendFailed

_ZONE = SearchAttributeKey.for_keyword(ZONE_ATTRIBUTE)


async def wake_dispatch(client: Client, names: Names, zone: str) -> None:
    """Tell a zone's dispatch that there is something to do; start it where it does not run."""
    await client.start_workflow(
        DISPATCH_WORKFLOW,
        zone,
        id=names.dispatch(zone),
        task_queue=names.main_queue,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        start_signal=WAKE_SIGNAL,
        memo={DISPATCH_RULE_MEMO: DISPATCH_RULE},
        static_summary=f"zone {zone}",
        search_attributes=TypedSearchAttributes([SearchAttributePair(_ZONE, zone)]),
    )


class WorkflowSink:
    """Signals the order's workflow with the stage that its row reached without it, or wakes a zone's dispatch.

    Both are idempotent.
    """

    def __init__(self, client: Client, names: Names, database: Database) -> None:
        self._client = client
        self._names = names
        self._database = database
        self._waking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def send(self, endpoint: Endpoint, message: Message) -> None:
        """Tell the workflow that the event concerns. Raises SendFailed when Temporal does not answer."""
        data: Any = message.data
        try:
            if message.event_type in ZONE_TYPES:
                await self._wake(data["zone"])
            else:
                await self._tell_order(data["orderId"], data["status"])
        except RPCError as error:
            raise SendFailed(ErrorClass.ENDPOINT, f"Temporal: {error.message}") from error
        except DATABASE_ERRORS as error:
            raise SendFailed(ErrorClass.ENDPOINT, f"PostgreSQL: {error_code(error)}") from error

    async def _tell_order(self, order_id: str, stage: str) -> None:
        """A workflow that is closed or gone needs no telling."""
        try:
            await self._client.get_workflow_handle(self._names.order(order_id)).signal(ROW_CHANGED_SIGNAL, stage)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise

    async def _wake(self, zone: str) -> None:
        """Signal only when the flag turned: a burst of deliveries is one signal, and one round.

        One after the other, so that who comes while another one signals finds that it is done.
        """
        async with self._waking[zone]:
            generation = await self._database.transact(partial(zones.set_wake, zone=zone))
            if generation is None:
                return
            await wake_dispatch(self._client, self._names, zone)
            await self._database.transact(partial(zones.wake_signalled, zone=zone, generation=generation))
