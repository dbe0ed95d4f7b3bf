"""Other Python libraries that do this job in PostgreSQL, set up as their documentation says for throughput.

What waits is written beforehand; the clock runs from the start of the worker to the last row that is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from faststream_outbox import OutboxBroker, make_outbox_table, outbox_autovacuum_ddl
from procrastinate import App, PsycopgConnector
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.outbox_http import bodies, client_session, signed
from bench.outbox_relay import Drained
from db.engine import create_engine
from domain.outbox import new_webhook_secret

_QUEUE = "events"
_WRITTEN_AT_ONCE = 1000
_POLL_SECONDS = 0.005
_TOO_LONG_SECONDS = 300.0

Handler = Callable[[bytes], Awaitable[None]]


async def faststream_no_op(url: str, count: int, *, workers: int = 1) -> Drained:
    """faststream-outbox with a handler that does nothing: one worker that settles in batches, its quickest setting."""

    async def handle(body: bytes) -> None:
        pass

    return await _faststream(url, count, workers, handle)


async def faststream_http(url: str, count: int, receiver_url: str, *, workers: int = 10) -> Drained:
    """faststream-outbox that signs each event and POSTs it, with so many workers."""
    secret = new_webhook_secret()
    async with client_session(workers) as session:

        async def handle(body: bytes) -> None:
            # The id travels in the event; a real handler would have parsed it out.
            headers = signed("event", body, secret)
            async with session.post(receiver_url, data=body, headers=headers, allow_redirects=False) as response:
                assert response.status == 204

        return await _faststream(url, count, workers, handle)


async def _faststream(url: str, count: int, workers: int, work: Handler) -> Drained:
    engine = create_engine(url, pool_size=workers + 3)
    try:
        broker = await _faststream_broker(engine, count)
        handled = 0
        done = asyncio.Event()

        async def handle(body: bytes) -> None:
            nonlocal handled
            await work(body)
            handled += 1
            if handled == count:
                done.set()

        # The options of the package's own benchmark.
        subscriber = broker.subscriber(
            _QUEUE,
            max_workers=workers,
            fetch_batch_size=max(100, 2 * workers),
            terminal_flush_batch_size=100,
            min_fetch_interval=0.001,
            max_fetch_interval=0.001,
            decoder=_as_it_is,
        )
        subscriber(handle)
        began = time.perf_counter()
        await broker.start()
        try:
            async with asyncio.timeout(_TOO_LONG_SECONDS):
                await done.wait()
            async with engine.connect() as connection:
                while await connection.scalar(text("SELECT EXISTS (SELECT FROM outbox)")):
                    await connection.rollback()
                    await asyncio.sleep(_POLL_SECONDS)
            return Drained(count, time.perf_counter() - began)
        finally:
            await broker.stop()
    finally:
        await engine.dispose()


async def _as_it_is(message: Any) -> bytes:
    """The event's bytes: it would be parsed as JSON otherwise, to be written again."""
    body: bytes = message.body
    return body


async def _faststream_broker(engine: AsyncEngine, count: int) -> OutboxBroker:
    metadata = MetaData()
    table = make_outbox_table(metadata, table_name="outbox")
    # Without a log line for every message.
    broker = OutboxBroker(engine, outbox_table=table, logger=None)
    payloads = [body for _, body in bodies(count)]
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(text(outbox_autovacuum_ddl("outbox", vacuum_cost_delay=0)))
        for first in range(0, count, _WRITTEN_AT_ONCE):
            batch = payloads[first : first + _WRITTEN_AT_ONCE]
            await broker.publish_batch(*batch, queue=_QUEUE, session=connection)
    await _analyse(engine)
    return broker


async def _analyse(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE"))


async def procrastinate_no_op(url: str, count: int, *, concurrency: int = 10) -> Drained:
    """Procrastinate with a task that does nothing: one worker, jobs run side by side and are deleted when done."""
    logging.getLogger("procrastinate").setLevel(logging.WARNING)
    app = App(connector=PsycopgConnector(conninfo=url, min_size=concurrency, max_size=concurrency))

    async def handle(body: str) -> None:
        pass

    task = app.task(queue=_QUEUE, name="handle")(handle)
    payloads = [{"body": body.decode()} for _, body in bodies(count)]
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for first in range(0, count, _WRITTEN_AT_ONCE):
            await task.batch_defer_async(*payloads[first : first + _WRITTEN_AT_ONCE])
        engine = create_engine(url, pool_size=1)
        await _analyse(engine)
        await engine.dispose()
        began = time.perf_counter()
        await app.run_worker_async(
            queues=[_QUEUE],
            wait=False,
            concurrency=concurrency,
            delete_jobs="successful",
            listen_notify=False,
            install_signal_handlers=False,
        )
        return Drained(count, time.perf_counter() - began)
