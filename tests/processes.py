"""Worker and API processes for tests that kill them, or set their clocks off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from local.ports import free_port
from settings import Settings

ROOT = Path(__file__).parent.parent


@contextmanager
def worker_process(
    settings: Settings, temporal_address: str, log: Path, *, prefix: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A `python worker.py` of the house's; killed at the end if it still runs. `prefix` is put before the command."""
    environment = {
        "WAYBILL_WORKER_METRICS_PORT": str(free_port()),
        "WAYBILL_WEBHOOK_ALLOW_PRIVATE": "1",
        "WAYBILL_SWEEP_SECONDS": "3600",
        "WAYBILL_SMTP_URL": settings.smtp_url or "",
        "WAYBILL_MAIL_FROM": settings.mail_from or "",
    }
    with _process([*prefix, sys.executable, "worker.py"], environment, settings, temporal_address, log) as process:
        yield process


@contextmanager
def api_process(
    settings: Settings, temporal_address: str, log: Path, *, prefix: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A `python -m api.app` of the house's, and its URL, which does not answer at once; killed at the end."""
    port = free_port()
    environment = {
        "WAYBILL_API_PORT": str(port),
        "WAYBILL_CLIENT_TOKEN": settings.client_token or "",
        "WAYBILL_COURIER_TOKEN": settings.courier_token or "",
        "WAYBILL_ADMIN_TOKEN": settings.admin_token or "",
    }
    command = [*prefix, sys.executable, "-m", "api.app"]
    with _process(command, environment, settings, temporal_address, log) as process:
        yield process, f"http://127.0.0.1:{port}"


@contextmanager
def _process(
    command: Sequence[str], own: dict[str, str], settings: Settings, temporal_address: str, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "WAYBILL_DATABASE_URL": settings.database_url or "",
        "WAYBILL_INSTALLATION": settings.installation,
        "WAYBILL_TEMPORAL_EMBEDDED": "1",
        "TEMPORAL_ADDRESS": temporal_address,
        **own,
    }
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
