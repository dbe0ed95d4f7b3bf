"""How the API and the workers reach Temporal, and what stands there for good: relays and schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.envconfig import ClientConfigProfile
from temporalio.runtime import Runtime
from temporalio.service import GrpcCompression, RPCError, RPCStatusCode

from domain.ids import SEARCH_ATTRIBUTES, Names
from domain.outbox import SHARDS
from workflows.inventory import SweepWorkflow
from workflows.ops import CrossCheckWorkflow
from workflows.outbox import OutboxRelayWorkflow

_DATABASE_MEMO = "database_id"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


async def connect(
    env: Mapping[str, str], *, embedded: bool, lazy: bool = False, runtime: Runtime | None = None
) -> Client:
    """Connect by the SDK's own `TEMPORAL_*` variables and, unless the server is the embedded one, its config file.

    `lazy`: the first call connects, so that a process starts while Temporal is down.
    """
    profile = ClientConfigProfile.load(disable_file=embedded, override_env_vars=dict(env))
    config = profile.to_client_connect_config()
    address = config.get("target_host") or "127.0.0.1:7233"
    config["target_host"] = address
    compression = GrpcCompression.NONE if address.rpartition(":")[0] in _LOOPBACK else GrpcCompression.GZIP
    return await Client.connect(**config, lazy=lazy, runtime=runtime, grpc_compression=compression)


async def ensure_search_attributes(client: Client) -> None:
    """Register Waybill's search attributes where they are missing (Temporal Cloud does it in its own way)."""
    known = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace)
    )
    missing = [name for name in SEARCH_ATTRIBUTES if name not in known.custom_attributes]
    if missing:
        await add_search_attributes(client, missing)


async def add_search_attributes(client: Client, names: Sequence[str]) -> None:
    """Register attributes of type Keyword in the client's namespace."""
    await client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(
            namespace=client.namespace,
            search_attributes=dict.fromkeys(names, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD),
        )
    )


class ForeignWorkflows(Exception):
    """Temporal holds the workflows of another database of this installation; the message is one sentence."""


@dataclass(frozen=True)
class Intervals:
    """Of the schedules, in seconds."""

    sweep_seconds: int
    cross_check_seconds: int


async def require_own_workflows(client: Client, names: Names, database_id: str) -> None:
    """Raise ForeignWorkflows where Temporal's workflows of this installation belong to another database.

    The cross-check's schedule remembers which one. Beside an empty or a foreign database nothing may run, and above all
    nothing may be ended; so this comes before any worker.
    """
    try:
        description = await client.get_schedule_handle(names.cross_check_schedule).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return
        raise
    if await description.memo_value(_DATABASE_MEMO, None, type_hint=str) != database_id:
        raise ForeignWorkflows(
            f"Temporal holds the workflows of another database of the installation {names.installation!r}: "
            "use that database, or another WAYBILL_INSTALLATION."
        )


async def ensure_standing(client: Client, names: Names, intervals: Intervals, database_id: str) -> None:
    """Start what must always run: a relay for every shard, and the schedules. Doing it again changes nothing."""
    known_loss = await _ensure_cross_check(client, names, intervals, database_id)
    for shard in range(SHARDS):
        await client.start_workflow(
            OutboxRelayWorkflow.run,
            args=[shard, names.relay_queue],
            id=names.relay(shard),
            task_queue=names.main_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"outbox shard {shard}",
        )
    sweep = ScheduleActionStartWorkflow(
        SweepWorkflow.run, id=names.sweep_schedule, task_queue=names.main_queue, static_summary="overdue holds"
    )
    await _ensure_schedule(client, names.sweep_schedule, sweep, intervals.sweep_seconds, {})
    await client.start_workflow(
        CrossCheckWorkflow.run,
        known_loss,
        id=names.cross_check("start-up"),
        task_queue=names.main_queue,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        static_summary="start-up, after a loss" if known_loss else "start-up",
    )


async def _ensure_cross_check(client: Client, names: Names, intervals: Intervals, database_id: str) -> bool:
    """Answer whether Temporal did not know us: whatever our rows say should live is lost there."""
    action = ScheduleActionStartWorkflow(
        CrossCheckWorkflow.run,
        False,
        id=names.cross_check_schedule,
        task_queue=names.main_queue,
        static_summary="rows and workflows",
    )
    memo = {_DATABASE_MEMO: database_id}
    return await _ensure_schedule(client, names.cross_check_schedule, action, intervals.cross_check_seconds, memo)


async def _ensure_schedule(
    client: Client, schedule_id: str, action: ScheduleActionStartWorkflow, every_seconds: int, memo: Mapping[str, str]
) -> bool:
    """Make a schedule, or set it to what it should do now; answer whether it is new."""
    schedule = Schedule(
        action=action,
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(seconds=every_seconds))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(seconds=60)),
    )

    async def renew(found: ScheduleUpdateInput) -> ScheduleUpdate:
        schedule.state = found.description.schedule.state  # an operator may have paused it
        return ScheduleUpdate(schedule)

    try:
        await client.create_schedule(schedule_id, schedule, memo=memo)
    except ScheduleAlreadyRunningError:
        await client.get_schedule_handle(schedule_id).update(renew)
        return False
    return True
