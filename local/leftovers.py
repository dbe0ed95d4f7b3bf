"""What a killed `make up` left running: found by a mark in its environment, and ended before the next one starts.

A mark needs no file of process ids: it covers helpers of helpers, has no gap between a start and the writing of a file,
and a reused id never carries it. PostgreSQL runs as another user, whose environment cannot be read everywhere, so it is
recognised by its command line instead (`local.postgres.postgres_leftovers`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

from local.postgres import end_postgres_leftovers
from local.processes import end_all

MARK = "WAYBILL_STACK"
"""Set to the data dir in the environment of every child but PostgreSQL."""

_GRACE_SECONDS = 6.0


def mark(data_dir: Path) -> dict[str, str]:
    """The environment variable that marks a process as belonging to the stack of `data_dir`."""
    return {MARK: str(data_dir)}


def marked_processes(data_dir: Path) -> list[psutil.Process]:
    """Every running process, but this one, that belongs to the stack of `data_dir`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == str(data_dir):
                found.append(process)
    return found


def end_leftovers(data_dir: Path, postgres_directory: Path) -> int:
    """End every process of the stack of `data_dir`, PostgreSQL last; returns how many there were. Takes up to 15 s."""
    found = marked_processes(data_dir)
    end_all(found, _GRACE_SECONDS)
    return len(found) + end_postgres_leftovers(postgres_directory)
