"""Every drill on a running stack: the metric moves, the alert's expression holds, the runbook's lines clear it.

The five run side by side on one stack, watched by one Prometheus with the project's own rules; each test clears one.
That alerts wait for some minutes before they fire is tested by promtool (tests/deploy/test_prometheus.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from temporalio.client import Client

from domain.ids import Names
from domain.ops import pause_is_over
from domain.outbox import PUBLIC_TYPES
from local.drills.__main__ import DRILLS
from local.leftovers import end_leftovers
from local.processes import Command, Process
from local.stack import DataDir, read_stack_env
from tests import runbook
from tests.local.stacks import PROJECT, stack_environment, stack_up
from tests.prometheus import Prometheus, program, prometheus
from tests.servers import throw_away_directory
from tests.waiting import wait_until

# What else would clear an incident is left out: each drill's test shows what the runbook does. The sweep is not: its
# drill pauses it.
QUIET = {"WAYBILL_SWEEP_SECONDS": "2", "WAYBILL_CROSS_CHECK_SECONDS": "3600", "WAYBILL_SWEEP_GRACE_SECONDS": "1"}
WORKERS_HOST = "127.0.0.2"
STAGED_SECONDS = 60


@dataclass
class Watch:
    """A stack, its Prometheus, and the drills that are under way."""

    environment: dict[str, str]
    directory: Path
    data_dir: DataDir
    watched: Prometheus
    drills: dict[str, Process] = field(default_factory=dict)

    def get(self, path: str) -> Any:
        """What a GET answers, with the status 200 or 404."""
        values = read_stack_env(self.data_dir.stack_env)
        token = {"Authorization": f"Bearer {values['WAYBILL_ADMIN_TOKEN']}"}
        response = httpx.get(values["WAYBILL_API_URL"] + path, headers=token, timeout=30)
        assert response.status_code in (200, 404), response.text
        return response.json()

    def put_webhook(self, name: str) -> None:
        """One of somebody's who is told of late deliveries only; there are none."""
        values = read_stack_env(self.data_dir.stack_env)
        token = {"Authorization": f"Bearer {values['WAYBILL_ADMIN_TOKEN']}"}
        body = {"url": "http://127.0.0.1:9/", "eventTypes": ["waybill.delivery.late"]}
        made = httpx.put(f"{values['WAYBILL_API_URL']}/api/admin/webhooks/{name}", headers=token, json=body)
        assert made.status_code == 201, made.text

    def swept(self) -> str | None:
        """When the sweep ended last."""
        ended: str | None = self.get("/api/admin/ops/health")["sweeper"]["lastFinishedAt"]
        return ended

    def pause_of_sweep(self) -> str | None:
        """Why the sweep's schedule is paused; None where it is not."""

        async def look() -> str | None:
            values = read_stack_env(self.data_dir.stack_env)
            client = await Client.connect(values["TEMPORAL_ADDRESS"])
            sweep = Names(self.environment.get("WAYBILL_INSTALLATION", "waybill")).sweep_schedule
            state = (await client.get_schedule_handle(sweep).describe()).schedule.state
            return state.note if state.paused else None

        return asyncio.run(look())

    @contextlib.contextmanager
    def workflow_that_no_worker_knows(self) -> Iterator[None]:
        """As one of a newer version is for a worker of an older one."""
        address = read_stack_env(self.data_dir.stack_env)["TEMPORAL_ADDRESS"]
        names = Names(self.environment.get("WAYBILL_INSTALLATION", "waybill"))

        async def begin() -> None:
            client = await Client.connect(address)
            await client.start_workflow("Unknown", id=f"{names.main_queue}-unknown", task_queue=names.main_queue)

        async def end() -> None:
            client = await Client.connect(address)
            await client.get_workflow_handle(f"{names.main_queue}-unknown").terminate("the test is over")

        asyncio.run(begin())
        try:
            yield
        finally:
            asyncio.run(end())

    def begin(self, name: str, *arguments: str) -> Process:
        """Start a drill, in the place of one that may still wait (its test was not asked for)."""
        if name in self.drills:
            self.drills[name].kill()
        argv = [sys.executable, "-m", "local.drills", name, *arguments]
        command = Command(name=name, argv=argv, environment=self.environment, directory=PROJECT)
        self.drills[name] = Process(command, self.directory / f"{name}.log")
        self.drills[name].start()
        return self.drills[name]

    def staged(self, name: str) -> str:
        """Wait until a drill has staged its incident, and its alert's expression holds; answer what it said."""
        drill, process = DRILLS[name], self.drills[name]
        wait_until(lambda: "and clear it" in process.output() or not process.running, STAGED_SECONDS)
        said = process.output()
        assert f'Open RUNBOOK.md at "{drill.section}"' in said, said
        wait_until(lambda: self.watched.alert(drill.alert)["state"] in ("pending", "firing"), STAGED_SECONDS)
        for alert in self.watched.alert(drill.alert)["alerts"]:
            assert "error" not in json.dumps(alert["annotations"])
            assert alert["annotations"]["runbook_url"].endswith(f"#{runbook.slug(drill.section)}")
        return said

    def cleared(self, name: str) -> None:
        """Wait until a drill has seen its incident end."""
        process = self.drills[name]
        wait_until(lambda: not process.running, STAGED_SECONDS)
        assert "It is cleared" in process.output(), process.output()
        assert process.exit_code == 0

    def silent(self, name: str) -> None:
        """Wait until a drill's alert is over."""
        wait_until(lambda: self.watched.alert(DRILLS[name].alert)["state"] == "inactive", 30)

    def conflicts_a_second(self) -> float:
        """Over the last moments, once there were enough looks to know."""
        query = "sum(rate(ops_assignment_conflicts_total[10s]))"
        wait_until(lambda: self.watched.value(query) is not None, STAGED_SECONDS)
        return self.watched.value(query) or 0.0

    def run(self, title: str, containing: str, **variables: str) -> Any:
        """Run the runbook's lines as they stand, with what they say is to be set; the last line's answer."""
        lines = [runbook.lines_of("Before you touch anything", "stack.env"), runbook.lines_of(title, containing)]
        done = subprocess.run(
            ["/bin/sh", "-eu", "-c", "\n".join(lines)],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return _last_answer(done.stdout)


def _last_answer(said: str) -> Any:
    """The last of several JSON texts in a row."""
    answer, position = None, 0
    while position < len(said):
        answer, position = json.JSONDecoder().raw_decode(said, position)
    return answer


@pytest.fixture(name="watch", scope="module")
def _watch() -> Iterator[Watch]:
    program("promtool")
    with throw_away_directory() as directory, contextlib.ExitStack() as stack:
        data_dir = DataDir(directory / ".data")
        environment = stack_environment(data_dir, **QUIET, WAYBILL_WORKER_METRICS_HOST=WORKERS_HOST)
        supervisor = stack_up(environment, directory / "up.log")
        try:
            worker = f"{WORKERS_HOST}:{environment['WAYBILL_WORKER_METRICS_PORT']}"
            watched = stack.enter_context(prometheus(directory, read_stack_env(data_dir.stack_env), worker))
            watch = Watch(environment, directory, data_dir, watched)
            watch.put_webhook("shop")
            for name in DRILLS:
                watch.begin(name)
            try:
                yield watch
            finally:
                for process in watch.drills.values():
                    process.kill()
        finally:
            supervisor.signal(signal.SIGINT)
            wait_until(lambda: not supervisor.running, 15)
            supervisor.kill()
            end_leftovers(data_dir.path, data_dir.postgres)


def test_prometheus_reads_the_fleet_the_readiness_and_the_worker(watch: Watch) -> None:
    jobs = {"waybill", "waybill-readiness", "waybill-worker"}
    wait_until(lambda: watch.watched.up() == dict.fromkeys(jobs, "up"), 30)
    names = watch.watched.names()
    assert {"ops_orders", "ops_outbox_backlog_size", "ops_invariant_violations", "temporal_request_total"} <= names


def test_a_workflow_that_cannot_go_on_shows(watch: Watch) -> None:
    failed = "temporal_workflow_task_execution_failed_total"
    assert failed in runbook.metric_names(runbook.RULES.read_text())
    with watch.workflow_that_no_worker_knows():
        wait_until(lambda: failed in watch.watched.names(), 30)


def test_a_first_look_keeps_a_snapshot(watch: Watch) -> None:
    assert watch.run("Before you touch anything", "snapshots")["snapshotId"]


def test_drift_is_reconciled(watch: Watch) -> None:
    title = DRILLS["drift"].section
    watch.staged("drift")
    report = watch.run(title, "inventory/drift")
    [drifted] = [item["sku"] for item in report["items"]]
    assert drifted == "drill-drift"
    begun = watch.run(title, '"dryRun":true', sku=drifted)["operationId"]
    wait_until(lambda: watch.run(title, "reconcile/$operation", operation=begun)["status"] == "DONE")
    [correction] = watch.run(title, "reconcile/$operation", operation=begun)["corrections"]
    assert (correction["sku"], correction["reservedStockAfter"], correction["applied"]) == (drifted, 0, False)
    watch.run(title, '"dryRun":false', sku=drifted)
    watch.cleared("drift")
    watch.silent("drift")


def test_stuck_holds_are_swept(watch: Watch) -> None:
    title = DRILLS["stuck"].section
    watch.staged("stuck")
    items = watch.run(title, "reservations/stuck")["items"]
    assert {(item["sku"], item["cause"]) for item in items} == {("drill-stuck", "workflow_closed")}
    paused = watch.pause_of_sweep()
    now = datetime.now(UTC)  # killed now, the drill leaves what the cross-check takes back before long, and no sooner
    assert [pause_is_over(paused, now + timedelta(minutes=minutes)) for minutes in (1, 4)] == [False, True]
    watch.run(title, "reservations/sweep")
    watch.cleared("stuck")
    watch.silent("stuck")
    assert watch.get("/api/products/drill-stuck")["reservedStock"] == 0
    assert watch.pause_of_sweep() is None
    swept = watch.swept()
    wait_until(lambda: watch.swept() != swept)  # by its schedule, which goes on


def test_a_webhook_that_moved_is_sent_to_where_it_is(watch: Watch) -> None:
    title, webhook = DRILLS["outage"].section, "drill-outage"
    said = watch.staged("outage")
    assert watch.run(title, 'curl -sS "$WAYBILL_API_URL', webhook=webhook)["breaker"] == "open"
    [url] = re.findall(r"moved to (http\S+?)\.$", said, re.MULTILINE)
    watch.run(title, "-X PUT", webhook=webhook, url=url)
    watch.cleared("outage")
    watch.silent("outage")
    assert watch.get(f"/api/admin/webhooks/{webhook}")["status"] == 404


def test_a_poisoned_event_is_seen_and_fixed(watch: Watch) -> None:
    title = DRILLS["poison"].section
    watch.staged("poison")
    [item] = watch.run(title, "outbox/failures?")["items"]
    assert (item["sink"], item["aggregateId"], item["errorClass"]) == ("drill-poison", "drill-poison", "event")
    assert item["lastError"] == "HTTP 400: no product may be called drill-poison"
    event = watch.run(title, "outbox/events", event=item["eventId"])
    assert [attempt["outcome"] for message in event["messages"] for attempt in message["attempts"]].count("failed") == 3
    assert watch.run(title, "/fix", message=item["messageId"], sku=item["aggregateId"])["status"] == "PENDING"
    watch.cleared("poison")
    watch.silent("poison")


def test_conflicts_fall_with_fewer_rounds_and_a_wider_window(watch: Watch) -> None:
    title = DRILLS["conflicts"].section
    watch.staged("conflicts")
    racing = watch.conflicts_a_second()
    assert racing > 0
    report = watch.run(title, "assignment/conflicts")
    assert sum(item["total"] for item in report["items"]) > 30
    zone = report["zones"][0]["zone"]
    assert zone == "drill-conflicts"
    watch.run(title, "PATCH", zone=zone)

    wait_until(lambda: watch.conflicts_a_second() < racing / 3, STAGED_SECONDS)
    watch.cleared("conflicts")
    assert watch.get("/api/admin/ops/assignment/settings/drill-conflicts")["batchWindowSeconds"] == 2


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_drill_that_is_interrupted_takes_its_incident_away(watch: Watch, by: signal.Signals) -> None:
    process = watch.begin("outage")
    watch.staged("outage")
    process.signal(by)
    process.signal(by)  # as make passes it on too
    wait_until(lambda: not process.running)
    assert process.exit_code == 130
    assert watch.get("/api/admin/webhooks/drill-outage")["status"] == 404


def test_a_drill_that_does_not_wait_leaves_its_incident(watch: Watch) -> None:
    process = watch.begin("drift", "--no-wait")
    wait_until(lambda: not process.running, STAGED_SECONDS)
    assert process.exit_code == 0, process.output()
    watch.run(DRILLS["drift"].section, '"dryRun":false', sku="drill-drift")
    wait_until(lambda: not watch.get("/api/admin/ops/inventory/drift")["items"])


def test_whoever_gets_a_drills_events_is_named_and_can_tell_them_from_others(watch: Watch) -> None:
    said = [process.output() for process in watch.drills.values()]
    assert ["Its events go to webhooks of yours too: shop." in each for each in said] == [True] * len(DRILLS)

    async def events() -> list[Any]:
        connection = await asyncpg.connect(read_stack_env(watch.data_dir.stack_env)["WAYBILL_DATABASE_URL"])
        rows = await connection.fetch("SELECT event_type, subject, data->>'zone' AS zone FROM outbox_events")
        await connection.close()
        return rows

    public = [row for row in asyncio.run(events()) if row["event_type"] in PUBLIC_TYPES]
    assert {row["event_type"].split(".")[1] for row in public} == {"order", "delivery", "inventory"}
    marks = {row["subject"] if ".inventory." in row["event_type"] else row["zone"] for row in public}
    assert {mark for mark in marks if not mark.startswith("drill-")} == set()


def test_afterwards_every_promise_holds_and_every_panel_had_something_to_show(watch: Watch) -> None:
    assert watch.run("After an incident", "invariants")["ok"]
    for_sale = [product["sku"] for product in watch.get("/api/products")["items"] if product["stock"]]
    assert for_sale == ["drill-drift"], "only what was left there on purpose"
    dashboard = json.loads((PROJECT / "deploy" / "grafana" / "dashboards" / "waybill.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert runbook.metric_names(" ".join(queries)) - watch.watched.names() == set()
    for query in queries:
        watch.watched.api("query", query=query)


@pytest.mark.parametrize(
    ("arguments", "says"), [(["nothing"], "invalid choice: 'nothing'"), ([], "the following arguments are required")]
)
def test_a_drill_that_does_not_exist_is_refused(arguments: list[str], says: str) -> None:
    command = [sys.executable, "-m", "local.drills", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert says in done.stderr
