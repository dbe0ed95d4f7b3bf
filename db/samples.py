"""Samples of the metrics: the last hour, as the console draws it. They outlive every process."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import ops
from db.engine import DATABASE_ERRORS, Database, error_code
from db.inventory import drift

log = structlog.get_logger(__name__)

BUCKET_SECONDS = 15
"""There is one sample per bucket, whoever takes it."""
KEPT_SECONDS = 3600
_LOOK_SECONDS = 5.0
_BY_ZONE = "zoneConflicts"
"""Totals by zone, source and kind: only their growth is asked for, of two samples."""

_BUCKET = f"date_bin(make_interval(secs => {BUCKET_SECONDS}), now(), 'epoch')"
_DUE = text(f"SELECT NOT EXISTS (SELECT FROM metric_samples WHERE at = {_BUCKET})")
_CLAIM = text(f"""
    INSERT INTO metric_samples (at, "values") VALUES ({_BUCKET}, '{{}}') ON CONFLICT (at) DO NOTHING RETURNING at
""")
_FILL = text('UPDATE metric_samples SET "values" = CAST(:values AS jsonb) WHERE at = :at')
_FORGET = text(f"DELETE FROM metric_samples WHERE at < now() - make_interval(secs => {KEPT_SECONDS + BUCKET_SECONDS})")
_READ = text(f"""
    SELECT CAST(extract(epoch FROM at) AS bigint) AS at, "values" - '{_BY_ZONE}' AS "values" FROM metric_samples
    WHERE at >= now() - make_interval(secs => {KEPT_SECONDS}) ORDER BY at
""")
_READ_ZONE_CONFLICTS = text(f"""
    SELECT "values"->'{_BY_ZONE}' FROM metric_samples
    WHERE at >= now() - make_interval(secs => :seconds) AND "values"->'{_BY_ZONE}' IS NOT NULL ORDER BY at LIMIT 1
""")


@asynccontextmanager
async def sampling(database: Database, grace_seconds: float) -> AsyncIterator[None]:
    """Take samples while the block runs. Workers and API do it alike, so that one of any of them is enough."""

    async def watch() -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await sample_if_due(database, grace_seconds)
            except DATABASE_ERRORS as error:
                log.warning("metrics not sampled", error=error_code(error))

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def sample_if_due(database: Database, grace_seconds: float) -> bool:
    """Take this bucket's sample, unless somebody has; answer whether it was taken."""
    async with database.read() as connection:
        due: bool = (await connection.execute(_DUE)).scalar_one()
    return due and await database.transact(partial(take_sample, grace_seconds=grace_seconds))


async def take_sample(connection: AsyncConnection, grace_seconds: float) -> bool:
    """Claim this bucket and fill it, and forget what is past the last hour; False where it has been claimed."""
    at = await connection.scalar(_CLAIM)
    if at is None:
        return False
    values = await _values(connection, grace_seconds)
    await connection.execute(_FILL, {"at": at, "values": json.dumps(values)})
    await connection.execute(_FORGET)
    return True


async def _values(connection: AsyncConnection, grace_seconds: float) -> dict[str, Any]:
    metrics = await ops.read_metrics(connection, grace_seconds)
    drifted = await drift.drift_totals(connection)
    orders = {row.status: row.total for row in metrics.status_counts if row.noun == "orders"}
    return {
        "backlog": metrics.values.outbox_backlog,
        "oldestPendingSeconds": round(metrics.values.outbox_oldest_pending_seconds, 3),
        "failed": metrics.values.outbox_failed,
        "stuck": metrics.values.stuck_reservations,
        "drift": drifted.products,
        "conflicts": sum(row.total for row in metrics.conflicts),
        "pendingDeliveries": metrics.values.pending_deliveries,
        "dispatched": metrics.values.dispatched or 0,
        "reserved": orders.get("RESERVED", 0),
        "confirmed": orders.get("CONFIRMED", 0),
        "delivered": orders.get("DELIVERED", 0),
        _BY_ZONE: [[*row] for row in await ops.zone_conflict_totals(connection)],
    }


async def read_samples(connection: AsyncConnection) -> Sequence[Row[Any]]:
    """The samples of the last hour, the oldest first: `at` in seconds since the epoch, `values` by name."""
    return (await connection.execute(_READ)).all()


async def zone_conflicts_before(connection: AsyncConnection, seconds: int) -> dict[tuple[str, str, str], int] | None:
    """Conflicts by zone, source and kind as the oldest sample of the last so many seconds (3600 at most) has them.

    None where nobody took a sample.
    """
    rows = await connection.scalar(_READ_ZONE_CONFLICTS, {"seconds": float(seconds)})
    return None if rows is None else {(zone, source, kind): total for zone, source, kind, total in rows}
