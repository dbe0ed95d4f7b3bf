"""The whole stack as `make up` runs it, for tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil

from local.leftovers import marked_processes
from local.ports import free_port
from local.postgres import postgres_leftovers
from local.processes import Command, Process
from local.stack import DataDir
from tests.waiting import wait_until

PROJECT = Path(__file__).resolve().parents[2]
PORTS = ("API_PORT", "PG_PORT", "TEMPORAL_PORT", "TEMPORAL_UI_PORT", "WORKER_METRICS_PORT")


def stack_environment(data_dir: DataDir, **more: str) -> dict[str, str]:
    """An environment of the stack's own: its data dir, and ports that are free."""
    chosen = {f"WAYBILL_{name}": str(free_port()) for name in PORTS}
    return {"PATH": os.environ["PATH"], "WAYBILL_DATA_DIR": str(data_dir.path), **chosen, **more}


def stack_up(environment: dict[str, str], log: Path) -> Process:
    """A supervisor that has brought the whole stack up."""
    supervisor = Process(
        Command(name="up", argv=[sys.executable, "-m", "local.up"], environment=environment, directory=PROJECT), log
    )
    supervisor.start()
    wait_until(lambda: "Waybill is up." in supervisor.output() or not supervisor.running, 60)
    assert supervisor.running, supervisor.output()
    return supervisor


def everything(data_dir: DataDir) -> list[psutil.Process]:
    """Every process of the stack but its supervisor."""
    return [*marked_processes(data_dir.path), *postgres_leftovers(data_dir.postgres)]
