"""The supervisor behind `make up`: brings the stack up in order, keeps it up, and takes it down in order."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from local import announce
from local.environment import api_url, child_environment, reachable_host
from local.errors import Interrupted, StackError
from local.external import place_of, require_postgres, require_temporal
from local.leftovers import end_leftovers, mark, marked_processes
from local.ports import WantedPort, require_free
from local.postgres import EmbeddedPostgres
from local.processes import Command, Process, end_all, run_to_end, wait_until
from local.restarts import Restarter
from local.stack import DataDir, Tokens, stack_env_values
from local.temporal import EmbeddedTemporal
from settings import Settings

PROJECT = Path(__file__).resolve().parent.parent

_MIGRATION_SECONDS = 600.0
_READY_SECONDS = 90.0
_LOOK_SECONDS = 0.2
# Together under the 10 s that a stop may take: the application drains first, then both servers at once.
_DRAIN_SECONDS = 6.0
_SERVERS_SECONDS = 2.3


class Supervisor:
    """One run of the stack on one data dir."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._data_dir = DataDir(settings.data_dir)
        self._servers: list[EmbeddedPostgres | EmbeddedTemporal] = []
        self._workers: list[Process] = []
        self._api: Process | None = None
        self._stop_requested = False

    def run(self) -> None:
        """Bring everything up and keep it up until SIGINT, SIGTERM or SIGHUP; then, and on any error, take it all down.

        Raises `StackError` or `OSError` if the stack cannot run as asked; nothing is left running then either.
        """
        self._listen_for_signals()
        self._data_dir.create()
        with self._data_dir.locked(), contextlib.suppress(Interrupted):
            try:
                self._bring_up()
                self._watch()
            finally:
                self._take_down()

    def _listen_for_signals(self) -> None:
        def request_stop(number: int, frame: FrameType | None) -> None:
            self._stop_requested = True

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # `nohup make up &` asks to survive the end of the terminal.
            if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, request_stop)

    def _check(self) -> None:
        if self._stop_requested:
            raise Interrupted

    def _bring_up(self) -> None:
        self._data_dir.remove_stack_env()
        ended = end_leftovers(self._data_dir.path, self._data_dir.postgres)
        if ended:
            announce.say(f"Ended {ended} process(es) that an earlier run left behind.")
        require_free(self._wanted_ports())
        self._check()
        database_url = self._bring_up_postgres()
        self._check()
        temporal_address = self._bring_up_temporal()
        self._check()
        tokens = self._data_dir.tokens(self._settings)
        environment = child_environment(
            self._settings, os.environ, database_url=database_url, temporal_address=temporal_address, tokens=tokens
        )
        self._migrate(environment, database_url)
        self._bring_up_application(environment)
        self._tell(database_url, temporal_address, tokens)

    def _wanted_ports(self) -> list[WantedPort]:
        settings = self._settings
        wanted = [WantedPort(settings.api_host, settings.api_port, "the API", "WAYBILL_API_PORT")]
        if settings.database_url is None:
            wanted.append(WantedPort("127.0.0.1", settings.pg_port, "PostgreSQL", "WAYBILL_PG_PORT"))
        if settings.temporal_address is None:
            wanted.append(WantedPort("127.0.0.1", settings.temporal_port, "Temporal", "WAYBILL_TEMPORAL_PORT"))
            wanted.append(
                WantedPort("127.0.0.1", settings.temporal_ui_port, "the Temporal UI", "WAYBILL_TEMPORAL_UI_PORT")
            )
        for index in range(settings.workers):
            port = settings.worker_metrics_port + index
            host, purpose = settings.worker_metrics_host, f"worker {index + 1}'s metrics"
            wanted.append(WantedPort(host, port, purpose, "WAYBILL_WORKER_METRICS_PORT"))
        return wanted

    def _bring_up_postgres(self) -> str:
        if self._settings.database_url is not None:
            require_postgres(self._settings.database_url)
            return self._settings.database_url
        announce.say("Starting PostgreSQL.")
        postgres = EmbeddedPostgres(
            self._data_dir.postgres, self._settings.pg_port, log=self._data_dir.logs / "postgres.log"
        )
        if postgres.socket_directory is None:
            announce.say("The data dir's path is too long for a socket in it: PostgreSQL listens on its port only.")
        self._servers.append(postgres)
        postgres.start(self._check)
        return postgres.url()

    def _bring_up_temporal(self) -> str:
        if self._settings.temporal_address is not None:
            require_temporal(self._settings.temporal_address, os.environ)
            return self._settings.temporal_address
        announce.say("Starting Temporal.")
        temporal = EmbeddedTemporal(
            self._settings.temporal_port,
            log=self._data_dir.logs / "temporal.log",
            database=self._data_dir.temporal_database,
            ui_port=self._settings.temporal_ui_port,
            environment=mark(self._data_dir.path),
        )
        self._servers.append(temporal)
        temporal.start(self._check)
        return temporal.address

    def _migrate(self, environment: dict[str, str], database_url: str) -> None:
        announce.say("Migrating the database.")
        owner_url = self._settings.database_owner_url or database_url
        command = self._python(
            "migrations", ["-m", "db.migrations"], {**environment, "WAYBILL_DATABASE_OWNER_URL": owner_url}
        )
        done = run_to_end(command, self._data_dir.logs / "migrations.log", _MIGRATION_SECONDS, self._check)
        if done.exit_code != 0:
            raise StackError(f"The database could not be migrated: {done.last_words()}")

    def _bring_up_application(self, environment: dict[str, str]) -> None:
        announce.say("Starting the API and the workers.")
        for index in range(self._settings.workers):
            port = str(self._settings.worker_metrics_port + index)
            command = self._python(
                f"Worker {index + 1}", ["worker.py"], {**environment, "WAYBILL_WORKER_METRICS_PORT": port}
            )
            self._workers.append(Process(command, self._data_dir.logs / f"worker-{index + 1}.log"))
        self._api = Process(self._python("API", ["-m", "api.app"], environment), self._data_dir.logs / "api.log")
        application = self._application()
        for process in application:
            process.start()

        def settled() -> bool:
            return any(not process.running for process in application) or self._ready()

        in_time = wait_until(settled, _READY_SECONDS, self._check)
        for process in application:
            if not process.running:
                raise StackError(f"{process.name} did not start: {process.last_words()}; its log is {process.log}.")
        if not in_time:
            raise StackError(
                f"The stack was not ready after {_READY_SECONDS:.0f} s; logs are in {self._data_dir.logs}."
            )

    def _python(self, name: str, arguments: list[str], environment: dict[str, str]) -> Command:
        return Command(name=name, argv=[sys.executable, *arguments], environment=environment, directory=PROJECT)

    def _application(self) -> list[Process]:
        return [*self._workers, *([self._api] if self._api else [])]

    def _ready(self) -> bool:
        return all("worker ready" in worker.output() for worker in self._workers) and self._api_ready()

    def _api_ready(self) -> bool:
        connection = http.client.HTTPConnection(
            reachable_host(self._settings.api_host), self._settings.api_port, timeout=3
        )
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _tell(self, database_url: str, temporal_address: str, tokens: Tokens) -> None:
        url = api_url(self._settings)
        self._data_dir.write_stack_env(stack_env_values(database_url, temporal_address, url, tokens))
        announce.status(
            [
                ("API", url),
                ("Console", f"{url}/console"),
                ("Temporal UI", self._settings.temporal_ui_url or "(WAYBILL_TEMPORAL_UI_URL does not say)"),
                ("Temporal", temporal_address),
                ("PostgreSQL", f"{place_of(database_url)} (make psql)"),
                ("Workers", ", ".join(str(worker.pid) for worker in self._workers) + " (process ids)"),
                ("Tokens", str(self._data_dir.stack_env)),
                ("Logs", str(self._data_dir.logs)),
            ]
        )
        announce.say("Waybill is up. Ctrl-C stops it.")

    def _watch(self) -> None:
        watched = [Restarter(server.process, time.monotonic()) for server in self._servers]
        watched += [Restarter(process, time.monotonic()) for process in self._application()]
        while True:
            for restarter in watched:
                if (news := restarter.look(time.monotonic())) is not None:
                    announce.say(news)
            self._check()
            time.sleep(_LOOK_SECONDS)

    def _take_down(self) -> None:
        self._data_dir.remove_stack_env()
        application = self._application()
        if not application and not self._servers:
            return
        announce.say("Stopping; this takes up to 10 s.")
        for process in application:
            process.signal(signal.SIGTERM)
        wait_until(lambda: not any(process.running for process in application), _DRAIN_SECONDS)
        for process in application:
            process.kill()
        for server in self._servers:
            server.request_stop()
        wait_until(lambda: not any(server.running for server in self._servers), _SERVERS_SECONDS)
        for server in reversed(self._servers):
            server.stop_now()
        # Helpers that left their process group; by now nothing has a reason to live.
        end_all(marked_processes(self._data_dir.path), grace_seconds=0, first=signal.SIGKILL)
        announce.say(f"Stopped. The state stays in {self._data_dir.path}.")
