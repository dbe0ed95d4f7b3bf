"""The cross-check: rows and workflows are made to agree, within guards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Collection
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import structlog
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.common import (
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.jobs import job_run
from activities.standing import Standing, ensure_standing
from db import cross_check as rows
from db import order as orders
from db.cross_check import Disagreement
from db.engine import Database
from domain.ids import (
    FAILURE_WORKFLOW,
    ORDER_WORKFLOW,
    OUTBOX_REPLAY_WORKFLOW,
    RECONCILE_WORKFLOW,
    ROW_CHANGED_SIGNAL,
    SNAPSHOT_WORKFLOW,
    STATUS_ATTRIBUTE,
    ZONE_ATTRIBUTE,
    Names,
)
from domain.ops import Job
from sinks.workflow import wake_dispatch

log = structlog.get_logger(__name__)

_STATUS = SearchAttributeKey.for_keyword(STATUS_ATTRIBUTE)
_ZONE = SearchAttributeKey.for_keyword(ZONE_ATTRIBUTE)
_ORPHAN = "workflow_without_order"

MOST_IN_A_PASS = 20
"""Above so many of a kind something larger is wrong, and mending would make it worse: stop and say so."""


@dataclass
class CrossCheckResult:
    """What a pass did, by kind: ids of what was mended, and of what it only saw."""

    orders_restarted: list[str] = field(default_factory=list)
    orders_told: list[str] = field(default_factory=list)
    orders_ended: list[str] = field(default_factory=list)
    failures_restarted: list[str] = field(default_factory=list)
    zones_woken: list[str] = field(default_factory=list)
    operations_restarted: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    stopped: str = ""

    def counts(self) -> dict[str, int]:
        """How many of each kind, by their names in JSON."""
        return {
            "ordersRestarted": len(self.orders_restarted),
            "ordersTold": len(self.orders_told),
            "ordersEnded": len(self.orders_ended),
            "failuresRestarted": len(self.failures_restarted),
            "zonesWoken": len(self.zones_woken),
            "operationsRestarted": len(self.operations_restarted),
            "left": len(self.left),
        }


class OpsActivities:
    """Watches over all of it."""

    def __init__(
        self, database: Database, client: Client, names: Names, standing: Standing, *, end_after_seconds: int
    ) -> None:
        self._database = database
        self._client = client
        self._names = names
        self._standing = standing
        self._end_after = timedelta(seconds=end_after_seconds)

    @activity.defn
    async def cross_check(self, known_loss: bool) -> CrossCheckResult:
        """Restart what rows say should live, tell workflows that lie behind their row, end workflows without a row.

        `known_loss`: Temporal is known to have lost what it had, so that any number is restarted.
        """
        async with job_run(self._database, Job.CROSS_CHECK) as run:
            result = await self._cross_check(known_loss=known_loss)
            run.result = result.counts()
        return result

    async def _cross_check(self, *, known_loss: bool) -> CrossCheckResult:
        result = CrossCheckResult()
        await ensure_standing(self._client, self._names, self._standing)
        running = await self._running_orders()
        await self._orders_without_workflow(result, running, known_loss=known_loss)
        await self._workflows_behind_or_without_row(result, running)
        await self._failures(result)
        await self._zones(result)
        await self._operations(result)
        log.info("cross-check", **result.counts())
        # Who was told has not been seen to listen: that counts where the next pass sees the same.
        amiss = [*result.left, *(f"workflow_behind {each}" for each in result.orders_told)]
        found = [Disagreement(*each.split(" ", 1)) for each in amiss]
        await self._database.transact(partial(rows.record_disagreements, found=found))
        if result.stopped:
            raise ApplicationError(result.stopped, type="CrossCheckStopped", non_retryable=True)
        return result

    # --- orders

    async def _running_orders(self) -> dict[str, str | None]:
        """Order id → the stage its workflow shows, by visibility: seconds old, it only nominates."""
        prefix = self._names.order("")
        running: dict[str, str | None] = {}
        async for workflow_id, status in self._running(ORDER_WORKFLOW, prefix):
            running[workflow_id.removeprefix(prefix)] = status
        return running

    async def _running(self, workflow_type: str, prefix: str) -> AsyncIterator[tuple[str, str | None]]:
        running = "ExecutionStatus = 'Running'"
        # The queue too: the ids of an installation called `x` begin like those of one called `x-order`.
        ours = f"TaskQueue = '{self._names.main_queue}' AND WorkflowId STARTS_WITH '{prefix}'"
        query = f"WorkflowType = '{workflow_type}' AND {running} AND {ours}"
        async for execution in self._client.list_workflows(query):
            activity.heartbeat()
            attributes = {key.name: value for key, value in execution.typed_search_attributes}
            yield execution.id, attributes.get(STATUS_ATTRIBUTE)

    async def _orders_without_workflow(
        self, result: CrossCheckResult, running: Collection[str], *, known_loss: bool
    ) -> None:
        async with self._database.read() as connection:
            nominated = [order_id async for order_id, _ in rows.open_orders(connection) if order_id not in running]
        missing = [each for each in nominated if not await self._is_running(self._names.order(each))]
        if len(missing) > MOST_IN_A_PASS and not known_loss:
            result.left += [f"order_without_workflow {each}" for each in missing]
            result.stopped = f"{len(missing)} open orders have no workflow: above {MOST_IN_A_PASS} none is restarted."
            return
        for order_id in missing:
            activity.heartbeat()
            if await self._restart_order(order_id):
                result.orders_restarted.append(order_id)

    async def _restart_order(self, order_id: str) -> bool:
        """Start an open order's workflow from its row; the second read decides."""
        async with self._database.read() as connection:
            stage = (await rows.stages(connection, [order_id])).get(order_id)
            if stage is None or not stage.open:
                return False
            order = await orders.get_new_order(connection, order_id)
        attributes = [SearchAttributePair(_STATUS, stage), SearchAttributePair(_ZONE, order.zone)]
        await self._client.start_workflow(
            ORDER_WORKFLOW,
            order,
            id=self._names.order(order_id),
            task_queue=self._names.main_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            static_summary=f"{order.summary}, restarted by the cross-check",
            search_attributes=TypedSearchAttributes(attributes),
        )
        return True

    async def _workflows_behind_or_without_row(self, result: CrossCheckResult, running: dict[str, str | None]) -> None:
        async with self._database.read() as connection:
            stages = await rows.stages(connection, running)
        behind = [each for each, shown in running.items() if each in stages and stages[each] != shown]
        for order_id in behind:
            activity.heartbeat()
            if await self._tell_order(order_id):
                result.orders_told.append(order_id)
        await self._end_orphans(result, [each for each in running if each not in stages])

    async def _end_orphans(self, result: CrossCheckResult, nominated: Collection[str]) -> None:
        """End workflows that have had no row for long; those seen for the first time are only written down."""
        async with self._database.read() as connection:
            stages = await rows.stages(connection, nominated)  # the row may have come while we looked around
            lasting = await rows.lasting_disagreements(connection, _ORPHAN)
        orphans: list[str] = []
        for order_id in nominated:
            if order_id in stages:
                continue
            result.left.append(f"{_ORPHAN} {order_id}")
            if order_id in lasting and await self._is_old(self._names.order(order_id)):
                orphans.append(order_id)
            if len(orphans) > MOST_IN_A_PASS:
                result.stopped = f"More than {MOST_IN_A_PASS} workflows have no order: none is ended."
                return
        for order_id in orphans:
            if await self._end_orphan(order_id):
                result.orders_ended.append(order_id)
                result.left.remove(f"{_ORPHAN} {order_id}")

    async def _tell_order(self, order_id: str) -> bool:
        """Tell a workflow that lies behind its row; describe and a second read decide that it does."""
        handle = self._client.get_workflow_handle(self._names.order(order_id))
        description = await self._describe(self._names.order(order_id))
        if description is None:
            return False
        shown = {key.name: value for key, value in description.typed_search_attributes}.get(STATUS_ATTRIBUTE)
        async with self._database.read() as connection:
            stage = (await rows.stages(connection, [order_id])).get(order_id)
        if description.status is not WorkflowExecutionStatus.RUNNING or stage is None or stage == shown:
            return False
        return await self._if_there(handle.signal(ROW_CHANGED_SIGNAL, stage))

    async def _is_old(self, workflow_id: str) -> bool:
        """Whether a running workflow is older than a row could still be on its way."""
        description = await self._describe(workflow_id)
        if description is None or description.status is not WorkflowExecutionStatus.RUNNING:
            return False
        # Both times are Temporal's own: this machine's clock may be off.
        return activity.info().started_time - description.start_time > self._end_after

    async def _end_orphan(self, order_id: str) -> bool:
        async with self._database.read() as connection:
            if await rows.stages(connection, [order_id]):
                return False
        handle = self._client.get_workflow_handle(self._names.order(order_id))
        return await self._if_there(handle.terminate("the cross-check found no row of this order"))

    # --- the rest

    async def _failures(self, result: CrossCheckResult) -> None:
        async with self._database.read() as connection:
            retrying = await rows.retrying_messages(connection)
        running = {each async for each, _ in self._running(FAILURE_WORKFLOW, self._names.failure(""))}
        nominated = [each for each in retrying if self._names.failure(each) not in running]
        lost = [each for each in nominated if not await self._is_running(self._names.failure(each))]
        if lost:
            await self._database.transact(partial(rows.forget_failure_workflows, message_ids=lost))
        result.failures_restarted += lost

    async def _zones(self, result: CrossCheckResult) -> None:
        async with self._database.read() as connection:
            zones = await rows.waiting_zones(connection)
        for zone in zones:  # also where the dispatch runs: a lost signal shows nowhere, and one more costs a round
            await self._database.transact(partial(rows.reset_wake, zone=zone))
            await wake_dispatch(self._client, self._names, zone)
            result.zones_woken.append(zone)

    async def _operations(self, result: CrossCheckResult) -> None:
        async with self._database.read() as connection:
            operations = await rows.running_operations(connection)
        kinds = {
            "reconcile": (RECONCILE_WORKFLOW, self._names.reconcile),
            "snapshot": (SNAPSHOT_WORKFLOW, self._names.snapshot),
            "outbox_replay": (OUTBOX_REPLAY_WORKFLOW, self._names.outbox_replay),
        }
        for kind, operation_id in operations:
            workflow, workflow_id = kinds[kind]
            if await self._is_running(workflow_id(operation_id)):
                continue
            await self._client.start_workflow(
                workflow,
                operation_id,
                id=workflow_id(operation_id),
                task_queue=self._names.main_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            )
            result.operations_restarted.append(operation_id)

    async def _is_running(self, workflow_id: str) -> bool:
        """What decides; unlike visibility it is never behind."""
        description = await self._describe(workflow_id)
        return description is not None and description.status is WorkflowExecutionStatus.RUNNING

    async def _describe(self, workflow_id: str) -> WorkflowExecutionDescription | None:
        activity.heartbeat()
        try:
            return await self._client.get_workflow_handle(workflow_id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise

    async def _if_there(self, call: Awaitable[None]) -> bool:
        """Whether the workflow was still there to be told."""
        try:
            await call
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return True
