"""Worker processes for tests that kill them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.ports import free_port
from settings import Settings

ROOT = Path(__file__).parent.parent


@contextmanager
def worker_process(settings: Settings, temporal_address: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A `python worker.py` of the house's; killed at the end if it still runs."""
    environment = {
        **os.environ,
        "WAYBILL_DATABASE_URL": settings.database_url or "",
        "WAYBILL_INSTALLATION": settings.installation,
        "WAYBILL_WORKER_METRICS_PORT": str(free_port()),
        "WAYBILL_WEBHOOK_ALLOW_PRIVATE": "1",
        "WAYBILL_SWEEP_SECONDS": "3600",
        "WAYBILL_TEMPORAL_EMBEDDED": "1",
        "TEMPORAL_ADDRESS": temporal_address,
    }
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, "worker.py"], cwd=ROOT, env=environment, stderr=output)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
