"""Debian's Prometheus, for tests of what it is told to scrape and to alert on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.ports import free_port
from local.processes import Command, Process
from tests.runbook import PROJECT
from tests.waiting import wait_until

FOLDER = PROJECT / "deploy" / "prometheus"
_WORKERS = """    dns_sd_configs:
      - names: ["worker"]
        type: A
        port: 9100
        refresh_interval: 15s
"""


def program(name: str) -> str:
    """`prometheus` or `promtool`; the test is skipped where it is missing, and fails where CI=true."""
    found = shutil.which(name)
    if found is None:
        missing = f"{name} is missing (Debian: apt-get install prometheus)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def promtool(*arguments: str) -> str:
    """What promtool says; it must be content."""
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


class Prometheus:
    """A running one."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def api(self, path: str, **parameters: str) -> Any:
        """What its HTTP API answers."""
        response = self._http.get(f"/api/v1/{path}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def up(self) -> dict[str, str]:
        """Each job's target's health."""
        return {target["labels"]["job"]: target["health"] for target in self.api("targets")["activeTargets"]}

    def value(self, query: str) -> float | None:
        """The value of a query with one result; None where there is none."""
        result = self.api("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else None

    def names(self) -> set[str]:
        """Every metric that it has."""
        return set(self.api("label/__name__/values"))

    def alert(self, name: str) -> dict[str, Any]:
        """An alert rule, as it was evaluated last; `pending` is that its expression holds, but not for long enough."""
        rules = [rule for group in self.api("rules")["groups"] for rule in group["rules"]]
        [rule] = [rule for rule in rules if rule["name"] == name]
        assert rule["health"] in ("ok", "unknown"), rule
        return dict(rule)


@contextmanager
def prometheus(directory: Path, stack: Mapping[str, str], worker: str) -> Iterator[Prometheus]:
    """A Prometheus with the project's rules and configuration, moved to the stack's addresses, that looks every 2 s."""
    token = directory / "admin-token"
    token.write_text(stack["WAYBILL_ADMIN_TOKEN"])
    configuration = (FOLDER / "prometheus.yml").read_text()
    for before, after, times in (
        ("api:8000", stack["WAYBILL_API_URL"].removeprefix("http://"), 2),
        (_WORKERS, f'    static_configs:\n      - targets: ["{worker}"]\n', 1),
        ("/run/waybill/admin-token", str(token), 1),
        ("interval: 15s", "interval: 2s", 2),
        ("timeout: 10s", "timeout: 2s", 1),
    ):
        assert configuration.count(before) == times, before
        configuration = configuration.replace(before, after)
    (directory / "prometheus.yml").write_text(configuration)
    shutil.copy(FOLDER / "rules.yml", directory)
    promtool("check", "config", str(directory / "prometheus.yml"))
    address = f"127.0.0.1:{free_port()}"
    options = {"config.file": "prometheus.yml", "storage.tsdb.path": "data", "web.listen-address": address}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    command = Command(
        name="Prometheus", argv=[program("prometheus"), *arguments], environment=os.environ, directory=directory
    )
    process = Process(command, directory / "prometheus.log")
    process.start()
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10) as http:
            running = Prometheus(http)
            wait_until(lambda: running.ready() or not process.running)
            assert process.running, process.output()
            yield running
    finally:
        process.kill()
        sys.stdout.write(process.output())
