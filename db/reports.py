"""What operations look at, written as the API answers it and a snapshot keeps it, from the caller's one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from db import health, jobs, ops
from db.health import LockWait, Transactions
from db.inventory import drift
from db.metrics import metric_families, sample_values
from db.ops import InvariantCheck
from db.outbox import failures
from db.samples import zone_conflicts_before
from domain.ops import Job, statement_shape
from domain.outbox import MessageStatus, message_id, rfc3339

_SNAPSHOT_FAILURES = 50
_WINDOWS = {"lastFiveMinutes": 300, "lastHour": 3600}


async def capture(connection: AsyncConnection, grace_seconds: float) -> dict[str, Any]:
    """Everything that explains an incident, for a file that may leave the house: no secrets, no personal data."""
    checks = await ops.check_invariants(connection)
    metrics = await ops.read_metrics(connection, grace_seconds)
    drift_totals = await drift.drift_totals(connection)
    failed = await failures.list_failures(connection, MessageStatus.FAILED, {}, None, _SNAPSHOT_FAILURES)
    return {
        "capturedAt": _time(await ops.database_time(connection)),
        "metrics": sample_values(metric_families(metrics, drift_totals, checks)),
        "failures": [{**show_failure(row), "lastError": _error_kind(row.last_error)} for row in failed],
        "drift": await drift_report(connection),
        "invariants": show_invariants(checks),
        "conflicts": await conflicts_report(connection),
        "health": await health_report(connection),
    }


def show_failure(row: Row[Any]) -> dict[str, Any]:
    """A failing message, without its workflow."""
    return {
        "messageId": message_id(row.position, row.endpoint_id),
        "eventId": row.event_id,
        "eventType": row.event_type,
        "aggregateId": row.subject,
        "sink": row.sink,
        "status": row.status,
        "attempts": row.attempts,
        "lastError": row.last_error,
        "errorClass": row.error_class,
        "failedAt": _time(row.failed_at),
    }


def _error_kind(last_error: str) -> str:
    """What comes before the first colon: behind it a receiver may echo the payload, or a URL may hold a secret."""
    return last_error.partition(":")[0]


async def drift_report(connection: AsyncConnection) -> dict[str, Any]:
    """Products whose counters disagree with their holds or with the ledger, the holds beside each."""
    rows = await drift.drifted_products(connection)
    by_sku: dict[str, list[dict[str, Any]]] = {row.sku: [] for row in rows}
    for reservation in await drift.active_reservations(connection, list(by_sku)):
        by_sku[reservation.sku].append(
            {
                "reservationId": str(reservation.reservation_id),
                "orderId": reservation.order_id,
                "quantity": reservation.quantity,
                "expiresAt": _time(reservation.expires_at),
            }
        )
    items = [
        {
            "sku": row.sku,
            "stock": row.stock,
            "reservedStock": row.reserved,
            "expectedReservedStock": row.expected_reserved,
            "drift": row.reserved - row.expected_reserved,
            "ledgerStock": row.ledger_stock,
            "reservations": by_sku[row.sku],
        }
        for row in rows
    ]
    drifts = [item["drift"] for item in items if item["drift"]]
    return {"driftedProducts": len(drifts), "driftQuantity": sum(map(abs, drifts)), "items": items}


def show_invariants(checks: Sequence[InvariantCheck]) -> dict[str, Any]:
    """Whether every promise is kept, and by which rows not."""
    return {
        "ok": not any(check.violations for check in checks),
        "checks": [
            {"name": check.name, "ok": not check.violations, "violations": check.violations, "sample": check.sample}
            for check in checks
        ],
    }


# --- conflicts


async def conflicts_report(connection: AsyncConnection) -> dict[str, Any]:
    """How many attempts lost, by who tried and what they lost to, in all and by zone; and what lost to nobody.

    Zones where most were lost lately come first. `zone` is null for what was counted without one, as by the version
    before; the windows are null where nobody took samples.
    """
    before = {name: await zone_conflicts_before(connection, seconds) for name, seconds in _WINDOWS.items()}
    by_zone: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in await ops.zone_conflict_totals(connection):
        lately = {
            name: None if then is None else row.total - then.get((row.zone, row.source, row.kind), 0)
            for name, then in before.items()
        }
        by_zone[row.zone].append({**_show_total(row), **lately})
    zones: list[dict[str, Any]] = [
        {"zone": zone or None, **{name: _sum(items, name) for name in ("total", *_WINDOWS)}, "items": items}
        for zone, items in by_zone.items()
    ]
    zones.sort(key=lambda zone: [-(zone[name] or 0) for name in (*_WINDOWS, "total")])
    return {
        "items": [_show_total(row) for row in await ops.conflict_totals(connection)],
        "zones": zones,
        "notConflicts": [_show_total(row) for row in await ops.apart_totals(connection)],
    }


def _show_total(row: Row[Any]) -> dict[str, Any]:
    return {"source": row.source, "kind": row.kind, "total": row.total}


def _sum(items: Sequence[dict[str, Any]], name: str) -> int | None:
    values = [item[name] for item in items]
    return None if None in values else sum(values)


# --- health


async def health_report(connection: AsyncConnection) -> dict[str, Any]:
    """How the jobs ran, who is there, and what goes on in the database."""
    ran = {row.job: row for row in await jobs.read_jobs(connection)}
    workers = await health.read_workers(connection)
    shards = await health.read_shards(connection)
    return {
        "sweeper": _show_job(ran.get(Job.SWEEP)),
        "crossCheck": _show_job(ran.get(Job.CROSS_CHECK)),
        "reconcile": _show_job(ran.get(Job.RECONCILE)),
        "retention": _show_job(ran.get(Job.RETENTION)),
        "workers": {
            "alive": sum(row.alive for row in workers),
            "items": [
                {
                    "workerId": row.worker_id,
                    "alive": row.alive,
                    "startedAt": _time(row.started_at),
                    "heartbeatAt": _time(row.heartbeat_at),
                }
                for row in workers
            ],
        },
        "relays": [
            {
                "shard": row.shard,
                "owner": row.owner,
                "ownerAlive": row.owner_alive,
                "takenAt": _time(row.taken_at),
            }
            for row in shards
        ],
        "database": _show_transactions(await health.read_transactions(connection)),
    }


def _show_job(row: Row[Any] | None) -> dict[str, Any]:
    """`lastFinishedAt` is the last run that got to its end, `lastErrorAt` the last that did not."""
    return {
        "lastStartedAt": _time(row.last_started_at) if row else None,
        "secondsSinceStart": _seconds(row.seconds_since_start) if row else None,
        "lastFinishedAt": _time(row.last_finished_at) if row else None,
        "lastResult": row.last_result if row else None,
        "lastErrorAt": _time(row.last_error_at) if row else None,
        "lastError": row.last_error if row else None,
        "succeeded": row.succeeded_total if row else 0,
        "failed": row.failed_total if row else 0,
    }


def _show_transactions(transactions: Transactions) -> dict[str, Any]:
    oldest = transactions.oldest_xmin
    return {
        "longestTransaction": _show_session(transactions.longest) if transactions.longest else None,
        "waiting": transactions.waiting,
        "lockWaits": [_show_wait(wait, transactions.blockers) for wait in transactions.waits],
        "oldestXmin": None
        if oldest is None
        else {
            "ageTransactions": oldest.age,
            "ageSeconds": _seconds(oldest.seconds),
            "holder": oldest.holder,
            "pid": oldest.pid,
            "name": oldest.name,
        },
        "hiddenSessions": transactions.hidden,
    }


def _show_wait(wait: LockWait, blockers: dict[int, Row[Any]]) -> dict[str, Any]:
    return {
        **_show_session(wait.session),
        "waitingSeconds": _seconds(wait.session.waiting_seconds),
        "blockers": [
            _show_session(blockers[pid]) if pid in blockers else {**_UNKNOWN_SESSION, "pid": pid}
            for pid in wait.blocked_by
        ],
    }


# A prepared transaction (pid 0) or a session that has just ended.
_UNKNOWN_SESSION = dict.fromkeys(("pid", "applicationName", "state", "transactionSeconds", "query"))


def _show_session(row: Row[Any]) -> dict[str, Any]:
    return {
        "pid": row.pid,
        "applicationName": row.application_name,
        "state": row.state,
        "transactionSeconds": _seconds(row.transaction_seconds),
        "query": statement_shape(row.query) if row.query is not None else None,
    }


def _seconds(value: float | None) -> float | None:
    return round(value, 3) if value is not None else None


def _time(value: datetime | None) -> str | None:
    return rfc3339(value) if value is not None else None
