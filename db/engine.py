"""Connections, and the one way to run a transaction."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import asyncpg
import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

log = structlog.get_logger(__name__)
Result = TypeVar("Result")

_RETRIED_SQLSTATES = frozenset({"40P01", "40001"})
"""Deadlock detected and serialization failure: the transaction left no trace and may simply run again."""
_TRIES = 5
_COMMAND_SECONDS = 20.0
"""Longer than any statement may take on the server: what has no answer by then has lost its connection."""
_BELL_PAUSE_SECONDS = 0.005

# A statement that waits longer than this is waiting for something that is broken; the activity's retry says so aloud.
_SERVER_SETTINGS = {
    "application_name": "waybill",
    "statement_timeout": "15000",
    # Below the local activities' 4 s: a copy of a transaction that waits is not started beside it.
    "lock_timeout": "3000",
    "idle_in_transaction_session_timeout": "20000",
    "timezone": "UTC",
    # Queries here are short; compiling them costs more than it saves.
    "jit": "off",
}

DATABASE_ERRORS = (DBAPIError, PoolTimeout, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What a call of PostgreSQL may raise; some of it means "not now" (see `is_passing`)."""

_PASSING_SQLSTATES = ("08", "40", "53", "57", "55P03", "25P03")
"""Connection, rolled back, out of resources, operator's intervention; lock not had, transaction idle too long."""


def is_passing(error: BaseException) -> bool:
    """Whether a database error means that the same call may succeed a moment later: unreachable, restarting or busy."""
    if isinstance(error, DBAPIError):
        if _connection_broke(error):
            return True
        return str(getattr(error.orig, "sqlstate", None)).startswith(_PASSING_SQLSTATES)
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate).startswith(_PASSING_SQLSTATES)
    return isinstance(error, DATABASE_ERRORS)


def _connection_broke(error: DBAPIError) -> bool:
    return error.connection_invalidated or isinstance(error, InterfaceError)


def is_lock_timeout(error: DBAPIError) -> bool:
    """Whether a statement waited for a lock for longer than it may."""
    return getattr(error.orig, "sqlstate", None) == "55P03"


_LOCK_WAIT = text("SELECT set_config('lock_timeout', :milliseconds, true)")


async def wait_for_locks(connection: AsyncConnection, most_seconds: float) -> None:
    """Let this transaction's statements wait so long for a lock; one that has to wait longer fails."""
    await connection.execute(_LOCK_WAIT, {"milliseconds": str(round(most_seconds * 1000))})


class LookedTooEarly(Exception):
    """What a transaction read before it had the lock has changed: it must run again, from the start."""


class WrongInstallation(Exception):
    """The database belongs to another installation, or to none; the message is one sentence."""


def error_code(error: BaseException) -> str:
    """What a database error may say in a log: its kind and SQLSTATE, never the values that PostgreSQL quotes."""
    original = getattr(error, "orig", None) or error
    if isinstance(original.__cause__, asyncpg.PostgresError):  # what SQLAlchemy calls just "Error"
        original = original.__cause__
    return f"{type(original).__name__} {getattr(original, 'sqlstate', None) or ''}".strip()


def create_engine(url: str, *, pool_size: int = 20, name: str = "waybill", ping: bool = True) -> AsyncEngine:
    """Make a connection pool. Connects only when first used.

    `url` is `postgresql://…` with whatever asyncpg understands in it (`?sslmode=require`). `ping`: a connection that
    broke while nobody used it is replaced unseen, at the price of a round trip each time one is taken.
    """
    settings = {**_SERVER_SETTINGS, "application_name": name}

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(url, server_settings=settings, timeout=5, command_timeout=_COMMAND_SECONDS)

    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10,
        pool_pre_ping=ping,
        hide_parameters=True,
    )


class Database:
    """The pool, with its transactions and reads."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._bells: dict[str, Bell] = {}
        self.retried = 0
        """Transactions run again after a deadlock or a serialization failure, since the process started."""

    async def transact(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Run `work` in one transaction, again if it lost to another one and left no trace (at most 5 tries)."""
        return await self._run(self._engine.begin, work)

    async def execute_once(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Run `work`, which is one statement, in a transaction of its own: one round trip instead of three.

        Run again also where its connection broke: a second time it does no harm.
        """
        return await self._run(self._autocommit.connect, work, harmless=True)

    async def _run(
        self,
        connect: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        work: Callable[[AsyncConnection], Awaitable[Result]],
        *,
        harmless: bool = False,
    ) -> Result:
        for attempt in range(1, _TRIES + 1):
            try:
                async with connect() as connection:
                    news: set[str] = connection.info.setdefault(_NEWS, set())
                    news.clear()  # of a transaction that was rolled back
                    result = await work(connection)
                    news = set(news)  # once it is back in the pool, the connection's next user begins with none
                for channel in news:
                    self._bells.setdefault(channel, Bell(self, channel)).ring()
                return result
            except (DBAPIError, LookedTooEarly) as error:
                sqlstate = getattr(getattr(error, "orig", None), "sqlstate", None)
                again = isinstance(error, LookedTooEarly) or sqlstate in _RETRIED_SQLSTATES
                again = again or (harmless and isinstance(error, DBAPIError) and _connection_broke(error))
                if not again or attempt == _TRIES:
                    raise
                self.retried += 1
                log.warning("transaction retried", sqlstate=sqlstate, attempt=attempt, retried=self.retried)
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))
        raise AssertionError("unreachable: the last try returned or raised")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A read-only transaction: every statement in it sees one snapshot."""
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            yield connection

    async def check_installation(self, installation: str) -> None:
        """Raise `WrongInstallation` unless the database was migrated for this installation."""
        async with self.read() as connection:
            found: Any = await connection.scalar(text("SELECT to_regclass('installation') IS NOT NULL"))
            if found:
                found = await connection.scalar(text("SELECT id FROM installation"))
        if not found:
            raise WrongInstallation("The database has not been migrated: run `python -m db.migrations` first.")
        if found != installation:
            raise WrongInstallation(
                f"The database belongs to the installation {found!r}, but WAYBILL_INSTALLATION is {installation!r}."
            )

    async def listen(self, channel: str, heard: Callable[[], None]) -> None:
        """Call `heard` at each notification of the channel, until the task is cancelled or the connection ends."""
        ended = asyncio.Event()
        async with self._autocommit.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            driver.add_termination_listener(lambda _: ended.set())
            await driver.add_listener(channel, lambda *_: heard())
            try:
                heard()  # whatever came before this moment
                await ended.wait()
            finally:
                await connection.invalidate()

    async def close(self) -> None:
        """Close every connection."""
        for bell in self._bells.values():
            await bell.close()
        await self._engine.dispose()


_NEWS = "waybill.news"


def announce(connection: AsyncConnection, channel: str) -> None:
    """Notify the channel soon after this transaction commits.

    Not in it: PostgreSQL lets transactions that notify commit only one at a time.
    """
    connection.info.setdefault(_NEWS, set()).add(channel)


class Bell:
    """Notifies one channel, at most once in a few milliseconds however often it is rung."""

    def __init__(self, database: Database, channel: str) -> None:
        self._database = database
        self._notify = text(f"NOTIFY {channel}")
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def ring(self) -> None:
        """Something was committed. A notification that is lost costs a poll's pause, and nothing else."""
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._ring())

    async def _ring(self) -> None:
        while self._again:
            self._again = False
            try:
                await self._database.execute_once(lambda connection: connection.execute(self._notify))
            except DATABASE_ERRORS as error:
                log.warning("nobody was notified", error=error_code(error))
            await asyncio.sleep(_BELL_PAUSE_SECONDS)

    async def close(self) -> None:
        """Ring no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
