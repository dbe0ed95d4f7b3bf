"""What must always stand in Temporal, by name: a relay for every shard, and the schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError, RPCStatusCode

from domain.ids import CROSS_CHECK_WORKFLOW, RELAY_WORKFLOW, RETENTION_WORKFLOW, SWEEP_WORKFLOW, Names
from domain.ops import pause_is_over
from domain.outbox import SHARDS

log = structlog.get_logger(__name__)

_DATABASE_MEMO = "database_id"
_RETENTION_SECONDS = 3600


class ForeignWorkflows(Exception):
    """Temporal holds the workflows of another database of this installation; the message is one sentence."""


@dataclass(frozen=True)
class Standing:
    """Whose standing things they are, and how often the schedules run."""

    database_id: str
    sweep_seconds: int
    cross_check_seconds: int


async def require_own_workflows(client: Client, names: Names, database_id: str) -> None:
    """Raise ForeignWorkflows where Temporal's workflows of this installation belong to another database.

    The cross-check's schedule remembers which one. Beside an empty or a foreign database nothing may run, and above all
    nothing may be ended; so this comes before any worker.
    """
    description = await _describe(client, names.cross_check_schedule)
    if description is not None and await description.memo_value(_DATABASE_MEMO, None, type_hint=str) != database_id:
        raise ForeignWorkflows(
            f"Temporal holds the workflows of another database of the installation {names.installation!r}: "
            "use that database, or another WAYBILL_INSTALLATION."
        )


async def start_standing(client: Client, names: Names, standing: Standing) -> None:
    """At a worker's start: ensure what must stand, and have rows and workflows compared.

    Where Temporal does not know our schedule it has lost what it had, and any number of orders is restarted. That is
    asked for before the schedule is made again: a crash between the two forgets nothing.
    """
    known_loss = await _describe(client, names.cross_check_schedule) is None
    await client.start_workflow(
        CROSS_CHECK_WORKFLOW,
        known_loss,
        id=names.cross_check("after-loss" if known_loss else "start-up"),
        task_queue=names.main_queue,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        static_summary="start-up, after a loss" if known_loss else "start-up",
    )
    await ensure_standing(client, names, standing)


async def ensure_standing(client: Client, names: Names, standing: Standing) -> None:
    """Start what does not run, make what is not there, end pauses that are over. Doing it again changes nothing."""
    for shard in range(SHARDS):
        await client.start_workflow(
            RELAY_WORKFLOW,
            args=[shard, names.relay_queue],
            id=names.relay(shard),
            task_queue=names.main_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"outbox shard {shard}",
        )
    sweep = _action(names, SWEEP_WORKFLOW, [], names.sweep_schedule, "overdue holds")
    await _ensure_schedule(client, names.sweep_schedule, sweep, standing.sweep_seconds, {})
    retention = _action(names, RETENTION_WORKFLOW, [], names.retention_schedule, "what is long over")
    await _ensure_schedule(client, names.retention_schedule, retention, _RETENTION_SECONDS, {})
    check = _action(names, CROSS_CHECK_WORKFLOW, [False], names.cross_check_schedule, "rows and workflows")
    memo = {_DATABASE_MEMO: standing.database_id}
    await _ensure_schedule(client, names.cross_check_schedule, check, standing.cross_check_seconds, memo)


async def _describe(client: Client, schedule_id: str) -> Any:
    """The schedule's description, or None where Temporal does not know it."""
    try:
        return await client.get_schedule_handle(schedule_id).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise


def _action(
    names: Names, workflow: str, arguments: list[bool], workflow_id: str, summary: str
) -> ScheduleActionStartWorkflow:
    return ScheduleActionStartWorkflow(
        workflow, args=arguments, id=workflow_id, task_queue=names.main_queue, static_summary=summary
    )


async def _ensure_schedule(
    client: Client, schedule_id: str, action: ScheduleActionStartWorkflow, every_seconds: int, memo: Mapping[str, str]
) -> None:
    schedule = Schedule(
        action=action,
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(seconds=every_seconds))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(seconds=60)),
    )

    async def renew(found: ScheduleUpdateInput) -> ScheduleUpdate:
        state = found.description.schedule.state  # an operator may have paused it
        if state.paused and pause_is_over(state.note, datetime.now(UTC)):
            state = ScheduleState(note="its pause was over")
            log.info("paused schedule goes on", schedule_id=schedule_id)
        schedule.state = state
        return ScheduleUpdate(schedule)

    try:
        await client.create_schedule(schedule_id, schedule, memo=memo)
    except ScheduleAlreadyRunningError:
        await client.get_schedule_handle(schedule_id).update(renew)
