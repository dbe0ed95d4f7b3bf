"""`make up`, for real: what it refuses, and that it resumes after a stop and after kills without leaving a trace."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.leftovers import end_leftovers, mark, marked_processes
from local.ports import free_port
from local.processes import Command, Process
from local.stack import DataDir, read_stack_env
from tests.local.stacks import PROJECT, everything, stack_environment, stack_up
from tests.servers import throw_away_directory
from tests.waiting import wait_until


@pytest.fixture(name="data_dir")
def _data_dir() -> Iterator[DataDir]:
    with throw_away_directory() as directory:
        data_dir = DataDir(directory)
        data_dir.create()
        yield data_dir


def _refusal(environment: dict[str, str]) -> str:
    """What `make up` says on stderr when it refuses: one line, after which nothing of it runs."""
    done = subprocess.run(
        [sys.executable, "-m", "local.up"],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert marked_processes(Path(environment["WAYBILL_DATA_DIR"])) == []
    [line] = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    "variable", ["WAYBILL_API_PORT", "WAYBILL_PG_PORT", "WAYBILL_TEMPORAL_UI_PORT", "WAYBILL_WORKER_METRICS_PORT"]
)
def test_a_busy_port_is_named_with_its_variable_and_its_holder(data_dir: DataDir, variable: str) -> None:
    environment = stack_environment(data_dir)
    with socket.create_server(("127.0.0.1", int(environment[variable]))):
        said = _refusal(environment)
    assert f"Port {environment[variable]} for " in said
    assert f"(process {os.getpid()})" in said
    assert variable in said


def test_one_port_for_two_things_is_refused(data_dir: DataDir) -> None:
    environment = stack_environment(data_dir)
    environment["WAYBILL_PG_PORT"] = environment["WAYBILL_API_PORT"]
    assert "is asked for twice, for the API and for PostgreSQL" in _refusal(environment)


def test_a_second_run_on_the_same_data_dir_is_refused(data_dir: DataDir) -> None:
    with data_dir.locked():
        said = _refusal(stack_environment(data_dir))
    assert f"Another `make up` (process {os.getpid()}) runs on {data_dir.path}" in said


def test_a_malformed_setting_is_named(data_dir: DataDir) -> None:
    assert "WAYBILL_WORKERS is 'many'" in _refusal(stack_environment(data_dir, WAYBILL_WORKERS="many"))


def test_a_database_that_does_not_answer_is_named_without_its_password(data_dir: DataDir) -> None:
    port = free_port()
    url = f"postgresql://someone:secret@127.0.0.1:{port}/waybill"
    said = _refusal(stack_environment(data_dir, WAYBILL_DATABASE_URL=url))
    assert f"WAYBILL_DATABASE_URL (127.0.0.1:{port}/waybill) cannot be used" in said
    assert "secret" not in said


def test_a_temporal_that_does_not_answer_is_named(data_dir: DataDir) -> None:
    address = f"127.0.0.1:{free_port()}"
    said = _refusal(stack_environment(data_dir, TEMPORAL_ADDRESS=address))
    assert f"The Temporal of TEMPORAL_ADDRESS ({address}) cannot be used" in said


def test_data_of_another_version_is_refused(data_dir: DataDir) -> None:
    data = data_dir.postgres / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("15\n")
    assert f"{data} holds data of PostgreSQL 15" in _refusal(stack_environment(data_dir))


def test_the_stack_comes_up_survives_kills_and_stops_without_a_trace(data_dir: DataDir, tmp_path: Path) -> None:
    environment = stack_environment(data_dir)
    supervisor = stack_up(environment, tmp_path / "up.log")
    try:
        first = read_stack_env(data_dir.stack_env)
        [api] = [process for process in marked_processes(data_dir.path) if "api.app" in process.cmdline()]
        api.kill()
        wait_until(lambda: "API runs again" in supervisor.output())

        # The supervisor alone is killed: what it started lives on, and the next run ends it and takes over.
        supervisor.signal(signal.SIGKILL)
        wait_until(lambda: not supervisor.running)
        assert everything(data_dir)
        supervisor = stack_up(environment, tmp_path / "up.log")
        assert "that an earlier run left behind" in supervisor.output()
        assert read_stack_env(data_dir.stack_env) == first

        # Everything is killed.
        supervisor.signal(signal.SIGKILL)
        wait_until(lambda: not supervisor.running)
        for process in everything(data_dir):
            process.kill()
        supervisor = stack_up(environment, tmp_path / "up.log")
        assert read_stack_env(data_dir.stack_env) == first

        supervisor.signal(signal.SIGINT)
        wait_until(lambda: not supervisor.running, 10)
        assert supervisor.exit_code == 0
        assert everything(data_dir) == []
        assert not data_dir.stack_env.exists()
    finally:
        supervisor.kill()
        end_leftovers(data_dir.path, data_dir.postgres)


def test_leftovers_are_ended_by_their_mark_and_nobody_else(data_dir: DataDir, tmp_path: Path) -> None:
    def started(name: str, environment: dict[str, str]) -> Process:
        program = (
            "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
        )
        command = Command(name=name, argv=[sys.executable, "-c", program], environment={**os.environ, **environment})
        process = Process(command, tmp_path / f"{name}.log")
        process.start()
        wait_until(lambda: "deaf" in process.output())
        return process

    ours = started("ours", mark(data_dir.path))
    other = started("other", mark(tmp_path))
    try:
        assert end_leftovers(data_dir.path, data_dir.postgres) == 1
        wait_until(lambda: not ours.running)
        assert ours.exit_code == -signal.SIGKILL
        assert other.running
    finally:
        ours.kill()
        other.kill()


def test_psql_says_when_no_stack_runs(data_dir: DataDir) -> None:
    def said() -> str:
        environment = stack_environment(data_dir)
        command = [sys.executable, "-m", "local.psql"]
        done = subprocess.run(
            command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1
        return done.stderr

    assert said() == f"make psql: No stack runs on {data_dir.path}: start one with `make up`.\n"
    data_dir.write_stack_env({"WAYBILL_DATABASE_URL": f"postgresql://waybill:no@127.0.0.1:{free_port()}/waybill"})
    assert "start it again with `make up`" in said()
