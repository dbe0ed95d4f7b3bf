"""How the API and the workers reach Temporal, and what stands there for good: relays and schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from temporalio.service import GrpcCompression

from domain.ids import SEARCH_ATTRIBUTES, Names
from domain.outbox import SHARDS
from workflows.inventory import SweepWorkflow
from workflows.outbox import OutboxRelayWorkflow

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


async def ensure_standing(client: Client, names: Names, *, sweep_seconds: int) -> None:
    """Start what must always run: a relay for every shard, and the schedules. Doing it again changes nothing."""
    for shard in range(SHARDS):
        await client.start_workflow(
            OutboxRelayWorkflow.run,
            args=[shard, names.relay_queue],
            id=names.relay(shard),
            task_queue=names.main_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"outbox shard {shard}",
        )
    await _ensure_schedule(client, names, sweep_seconds)


async def _ensure_schedule(client: Client, names: Names, sweep_seconds: int) -> None:
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            SweepWorkflow.run, id=names.sweep_schedule, task_queue=names.main_queue, static_summary="overdue holds"
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(seconds=sweep_seconds))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(seconds=60)),
    )
    try:
        await client.create_schedule(names.sweep_schedule, schedule)
    except ScheduleAlreadyRunningError:

        async def renew(found: ScheduleUpdateInput) -> ScheduleUpdate:
            schedule.state = found.description.schedule.state  # an operator may have paused it
            return ScheduleUpdate(schedule)

        await client.get_schedule_handle(names.sweep_schedule).update(renew)
