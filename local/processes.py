"""Child processes: started with a log of their own, waited for, and ended without leaving any behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from local.account import OURSELVES, Account

LOG_ROTATION_BYTES = 50 * 1024 * 1024
"""A log larger than this is set aside (as `<name>.log.1`) the next time its process starts."""

_POLL_SECONDS = 0.05
_KILL_SECONDS = 2.0


def keep_waiting() -> None:
    """The default `check` of the waits below: nothing interrupts them."""


def wait_until(condition: Callable[[], bool], timeout_seconds: float, check: Callable[[], None] = keep_waiting) -> bool:
    """Poll `condition` for at most `timeout_seconds`; returns whether it came true.

    `check` is called between polls and ends the wait by raising.
    """
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        check()
        time.sleep(_POLL_SECONDS)
    return True


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to start: its name in messages, its arguments, its whole environment and the account it runs under."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    account: Account = OURSELVES
    directory: Path | None = None


class Process:
    """One child process with a log file; it can be started again after it ended.

    It leads a session of its own, so that a Ctrl-C in our terminal reaches only us and we decide the order of the stop.
    """

    def __init__(self, command: Command, log: Path) -> None:
        self.command = command
        self.log = log
        self._log_start = 0
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The process's name in messages."""
        return self.command.name

    @property
    def pid(self) -> int | None:
        """The process id of the last start; None before the first."""
        return self._popen.pid if self._popen else None

    @property
    def exit_code(self) -> int | None:
        """How it ended (negative: the signal that killed it); None while it runs and before the first start."""
        return self._popen.poll() if self._popen else None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Start it, its output appended to the log. Raises `OSError` if the program cannot be run."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        _rotate(self.log)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._popen = subprocess.Popen(
                self.command.account.argv(self.command.argv),
                env=dict(self.command.environment),
                cwd=self.command.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self.command.account.popen_options(),
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it still runs."""
        if self._popen is not None:
            self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL it and what it started (its process group), and collect it."""
        if self._popen is None:
            return
        # The group outlives its leader: helpers of a leader that has ended are still found under its id.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def wait_for_end(self, timeout_seconds: float) -> bool:
        """Wait for it to end by itself; returns whether it did (also true if it was never started)."""
        return wait_until(lambda: not self.running, timeout_seconds)

    def output(self) -> str:
        """What it wrote to its log since its last start."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def last_words(self) -> str:
        """The last line it wrote since its last start, as one sentence for a message."""
        return last_line(self.output())


def last_line(output: str) -> str:
    """The last non-empty line of `output`; of a JSON log line, its event and error. Cut to 500 characters."""
    line = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "it wrote nothing")
    with contextlib.suppress(ValueError):
        entry = json.loads(line)
        if isinstance(entry, dict) and "event" in entry:
            line = ": ".join(str(entry[key]) for key in ("event", "error") if key in entry)
    return line[:500]


def run_to_end(command: Command, log: Path, timeout_seconds: float, check: Callable[[], None]) -> Process:
    """Run a command until it ends and return it; killed, with what it started, if `check` raises or time is up."""
    process = Process(command, log)
    process.start()
    try:
        wait_until(lambda: not process.running, timeout_seconds, check)
    finally:
        process.kill()
    return process


def end_all(found: Sequence[psutil.Process], grace_seconds: float, first: signal.Signals = signal.SIGTERM) -> None:
    """Ask processes that are not our children to end, and SIGKILL those that have not after `grace_seconds`.

    A process id that was reused meanwhile is never hit: psutil compares creation times before it signals.
    """
    for number, seconds in ((first, grace_seconds), (signal.SIGKILL, _KILL_SECONDS)):
        for process in filter(_alive, found):
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        wait_until(lambda: not any(map(_alive, found)), seconds)


def _alive(process: psutil.Process) -> bool:
    # One that ended stays in the process table until its parent looks, which the first process of a container may not.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_ROTATION_BYTES:
        log.replace(log.with_name(log.name + ".1"))
