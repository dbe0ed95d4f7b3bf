"""A worker process: workflows, activities and relays. `python worker.py`; SIGTERM drains and ends it.

One of the two composition roots (the other is `api/app.py`): what the floors need is built here and handed down.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from temporalio.client import Client
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities.assignment import AssignmentActivities
from activities.inventory import InventoryActivities
from activities.ops import OpsActivities
from activities.order import OrderActivities
from activities.outbox import OutboxActivities
from activities.outbox_replay import OutboxReplayActivities
from activities.retention import RetentionActivities
from activities.snapshots import SnapshotActivities
from activities.standing import ForeignWorkflows, Standing, require_own_workflows, start_standing
from db import cross_check, ops
from db.engine import DATABASE_ERRORS, Database, WrongInstallation, create_engine
from db.outbox import notifications
from db.samples import sampling
from domain.ids import Names
from domain.outbox import SHARDS, SinkKind
from logs import configure_logs
from settings import EX_CONFIG, Settings, SettingsError
from sinks import Sink
from sinks.email import EmailSink, MailServer
from sinks.webhook import WebhookSink
from sinks.workflow import WorkflowSink
from workflows.assignment import DispatchWorkflow
from workflows.client import connect, ensure_search_attributes
from workflows.inventory import ReconcileWorkflow, SweepWorkflow
from workflows.ops import CrossCheckWorkflow, RetentionWorkflow
from workflows.order import OrderWorkflow
from workflows.outbox import OutboxFailureWorkflow, OutboxRelayWorkflow
from workflows.outbox_replay import OutboxReplayWorkflow
from workflows.snapshots import SnapshotWorkflow

log = structlog.get_logger(__name__)

_HEARTBEAT_SECONDS = 1.0
_RELAY_POOL = 12
_DRAIN = timedelta(seconds=6)
_WARM_AFTER_SECONDS = 3.0
"""What waited for a worker has its cores first."""

WORKFLOWS = [
    OrderWorkflow,
    DispatchWorkflow,
    OutboxRelayWorkflow,
    OutboxFailureWorkflow,
    OutboxReplayWorkflow,
    SweepWorkflow,
    ReconcileWorkflow,
    CrossCheckWorkflow,
    SnapshotWorkflow,
    RetentionWorkflow,
]


@asynccontextmanager
async def running_worker(
    settings: Settings, client: Client, *, sandboxed: bool = True, warm: bool = False
) -> AsyncIterator[str]:
    """Run a worker on a connected client until the block ends, then drain it; yields the worker's id.

    `sandboxed`: with the SDK's guard against workflow code that is not deterministic, as tests run it.
    `warm`: start a solver soon, not in the first round. Whoever runs workers for a moment only does without.
    Raises WrongInstallation where the database is not this installation's, ForeignWorkflows where Temporal's are not.
    """
    # Containers may share names and pids.
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    database = Database(create_engine(settings.database_url or "", name=worker_id))
    names = Names(settings.installation)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        await database.check_installation(settings.installation)
        async with database.read() as connection:
            database_id = await cross_check.database_id(connection)
        mail_server = MailServer.of(settings.smtp_url, settings.mail_from or "") if settings.smtp_url else None
        await database.transact(partial(notifications.switch_email, on=mail_server is not None))
        standing = Standing(database_id, settings.sweep_seconds, settings.cross_check_seconds)
        await require_own_workflows(client, names, database_id)
        webhook = WebhookSink(allow_private=settings.webhook_allow_private or False)
        stack.push_async_callback(webhook.close)
        sinks: dict[SinkKind, Sink] = {
            SinkKind.WEBHOOK: webhook,
            SinkKind.WORKFLOW: WorkflowSink(client, names, database),
            SinkKind.EMAIL: EmailSink(mail_server, database),
        }
        # Relays settle hundreds of messages a round trip, and begin anew when a connection breaks.
        url = settings.database_url or ""
        carriage = Database(create_engine(url, pool_size=_RELAY_POOL, name=worker_id, ping=False))
        stack.push_async_callback(carriage.close)
        outbox = OutboxActivities(carriage, client, names, sinks, worker_id=worker_id)
        assignment = AssignmentActivities(database)
        stack.callback(assignment.close)
        watch = OpsActivities(database, client, names, standing, end_after_seconds=settings.cross_check_age_seconds)
        shared: list[Callable[..., Any]] = [outbox.retry_message, assignment.run_round, watch.cross_check]
        runner = SandboxedWorkflowRunner() if sandboxed else UnsandboxedWorkflowRunner()
        main = _main_worker(settings, client, names, database, runner, shared)
        relays = Worker(
            client,
            task_queue=names.relay_queue,
            activities=[outbox.relay],
            max_concurrent_activities=SHARDS,
            # One that is frozen takes no more than one task with it, until that is missed too.
            max_concurrent_activity_task_polls=1,
            graceful_shutdown_timeout=_DRAIN,
        )
        await stack.enter_async_context(_listening(outbox))
        await stack.enter_async_context(_running(main, relays))
        await stack.enter_async_context(_heartbeat(database, worker_id))
        await stack.enter_async_context(sampling(database, settings.sweep_grace_seconds))
        if warm:
            await stack.enter_async_context(_warming(assignment))
        await start_standing(client, names, standing)
        log.info("worker ready", worker_id=worker_id, installation=settings.installation)
        yield worker_id
        log.info("worker drains", worker_id=worker_id)


def _main_worker(
    settings: Settings,
    client: Client,
    names: Names,
    database: Database,
    runner: WorkflowRunner,
    more_activities: Sequence[Callable[..., Any]],
) -> Worker:
    """What runs every workflow, and every activity but the relays."""
    order = OrderActivities(database, promise_seconds=settings.promise_seconds)
    inventory = InventoryActivities(database, sweep_grace_seconds=settings.sweep_grace_seconds)
    replays = OutboxReplayActivities(database)
    snapshots = SnapshotActivities(database, sweep_grace_seconds=settings.sweep_grace_seconds)
    retention = RetentionActivities(database, retention_days=settings.retention_days)
    return Worker(
        client,
        task_queue=names.main_queue,
        workflows=WORKFLOWS,
        workflow_runner=runner,
        activities=[
            order.reserve_order,
            order.confirm_order,
            order.extend_order,
            order.cancel_order,
            order.expire_order,
            order.watch_promise,
            inventory.sweep_holds,
            inventory.reconcile,
            replays.replay_batch,
            snapshots.capture_snapshot,
            retention.delete_what_is_over,
            *more_activities,
        ],
        graceful_shutdown_timeout=_DRAIN,
        # A dead worker's orders answer to another one after this long, well within a client's patience of 15 s.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=5),
    )


@asynccontextmanager
async def _running(*workers: Worker) -> AsyncIterator[None]:
    """Run the workers until the block ends; then they drain side by side, within one time limit."""
    for worker in workers:
        await worker.__aenter__()
    try:
        yield
    finally:
        await asyncio.gather(*(worker.__aexit__(None, None, None) for worker in workers))


@asynccontextmanager
async def _listening(outbox: OutboxActivities) -> AsyncIterator[None]:
    """Wake the relays by notification until the block ends."""
    task = asyncio.create_task(outbox.listen())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _warming(assignment: AssignmentActivities) -> AsyncIterator[None]:
    """Warm the solver up while the block runs."""

    async def warm() -> None:
        await asyncio.sleep(_WARM_AFTER_SECONDS)
        await assignment.solver.warm_up()

    task = asyncio.create_task(warm())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _heartbeat(database: Database, worker_id: str) -> AsyncIterator[None]:
    """Keep the worker's row fresh; take it away first when the worker stops, so that the API starts nothing more."""

    async def beat() -> None:
        while True:
            try:
                await database.transact(lambda connection: ops.heartbeat(connection, worker_id))
            except DATABASE_ERRORS as error:
                log.warning("heartbeat failed", error=str(error))
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    await database.transact(lambda connection: ops.heartbeat(connection, worker_id))
    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        try:
            await database.transact(lambda connection: ops.forget_worker(connection, worker_id))
        except DATABASE_ERRORS as error:
            log.warning("heartbeat not withdrawn", error=str(error))


def collect_garbage_seldom() -> None:
    """Keep the collector of cycles out of the way, once all modules are there.

    What is there by now stays: a collection that walks through all of it keeps every loop waiting (130 ms were seen).
    And what is being sent lives for milliseconds: looking through it at every 700 new objects took a tenth of a relay's
    CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


async def _run(settings: Settings) -> None:
    collect_garbage_seldom()
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    host, port = settings.worker_metrics_host, settings.worker_metrics_port
    bind_address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    metrics = PrometheusConfig(bind_address=bind_address, counters_total_suffix=True, unit_suffix=True)
    runtime = Runtime(telemetry=TelemetryConfig(metrics=metrics))
    client = await connect(os.environ, embedded=settings.temporal_embedded, runtime=runtime)
    await ensure_search_attributes(client)
    # The sandbox costs 6 ms of CPU an order, in 22: a fifth of the orders that a core can take. Tests keep watch.
    async with running_worker(settings, client, sandboxed=False, warm=True):
        await stop.wait()


def main() -> None:
    """Run until SIGTERM or SIGINT. Exit code 78: misconfigured; 1: a server cannot be reached."""
    configure_logs("worker")
    try:
        settings = Settings.from_env(os.environ)
        if settings.database_url is None:
            raise SettingsError("WAYBILL_DATABASE_URL is not set: it says where the truth is kept.")
        asyncio.run(_run(settings))
    except (SettingsError, WrongInstallation, ForeignWorkflows) as error:
        log.error(str(error))
        sys.exit(EX_CONFIG)
    except (*DATABASE_ERRORS, RPCError, RuntimeError) as error:
        log.error("worker cannot run", error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
