"""Restarting what dies: with a growing pause, a clear word, and not when no restart can help."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from local.errors import StackError
from local.processes import LOG_ROTATION_BYTES, Command, Process, last_line
from local.restarts import Restarter
from tests.waiting import wait_until

_WAIT = "import signal; signal.pause()"


def _process(directory: Path, program: str) -> Process:
    command = Command(name="Worker 1", argv=[sys.executable, "-c", program], environment=dict(os.environ))
    return Process(command, directory / "worker.log")


def _ended(process: Process) -> Process:
    process.start()
    wait_until(lambda: not process.running)
    return process


def test_what_dies_is_started_again_after_a_growing_pause(tmp_path: Path) -> None:
    process = _ended(_process(tmp_path, "raise SystemExit(3)"))
    restarter = Restarter(process, now=0.0)
    now = 0.0
    for pause in ("0.5", "1", "2", "4", "8", "10", "10"):
        said = restarter.look(now)
        assert said is not None
        assert f"Worker 1 ended with exit code 3; starting it again in {pause} s." in said
        assert restarter.look(now) is None
        now += float(pause)
        said = restarter.look(now)
        assert said == f"Worker 1 runs again (process {process.pid})."
        wait_until(lambda: not process.running)
    said = restarter.look(now + 61)
    assert said is not None
    assert "in 0.5 s" in said


def test_a_healthy_process_is_left_alone_and_a_killed_one_named_so(tmp_path: Path) -> None:
    process = _process(tmp_path, _WAIT)
    process.start()
    restarter = Restarter(process, now=0.0)
    assert restarter.look(1.0) is None
    process.kill()
    assert "was killed by signal 9" in (restarter.look(2.0) or "")


def test_a_configuration_error_is_final(tmp_path: Path) -> None:
    process = _ended(_process(tmp_path, """print('{"event": "WAYBILL_SMTP_URL is no URL"}'); raise SystemExit(78)"""))
    with pytest.raises(StackError, match="Worker 1 cannot run as configured: WAYBILL_SMTP_URL is no URL"):
        Restarter(process, now=0.0).look(0.0)


def test_a_process_is_killed_with_its_helpers(tmp_path: Path) -> None:
    program = f"import subprocess; print(subprocess.Popen([{sys.executable!r}, '-c', {_WAIT!r}]).pid, flush=True)"
    process = _ended(_process(tmp_path, program))
    [helper] = [int(line) for line in process.output().splitlines()]
    assert _runs(helper)
    process.kill()
    wait_until(lambda: not _runs(helper))


def test_a_log_that_grew_large_is_set_aside_at_the_next_start(tmp_path: Path) -> None:
    process = _process(tmp_path, "print('new')")
    with process.log.open("wb") as log:
        log.truncate(LOG_ROTATION_BYTES + 1)
    _ended(process)
    assert process.log.read_text() == "new\n"
    assert (tmp_path / "worker.log.1").stat().st_size == LOG_ROTATION_BYTES + 1


def test_last_words() -> None:
    assert last_line("") == "it wrote nothing"
    assert last_line("Traceback\nValueError: no\n\n") == "ValueError: no"
    assert last_line('{"level": "error", "event": "failed", "error": "no"}') == "failed: no"


def _runs(pid: int) -> bool:
    # A helper that ended may stay in the process table as a zombie ("Z") until somebody collects it.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
