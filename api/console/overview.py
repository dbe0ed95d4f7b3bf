"""The overview: is it well? And the last hour, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import Row

from api import ops as ops_api
from api.console.login import login_page
from api.console.pages import duration, form_body, number_of, page, said
from api.models import Reasoned
from api.services import Services, ServicesDep
from db import ops, reports
from db.inventory import drift
from db.ops import OUTBOX_PATIENCE_SECONDS
from db.overview import read_overview
from db.samples import BUCKET_SECONDS, read_samples
from domain.outbox import RESERVED_NAMES

router = APIRouter()

_SERIES = {
    "backlog": ("backlog",),
    "oldest": ("oldestPendingSeconds",),
    "trouble": ("failed", "stuck", "drift"),
    "orders": ("reserved", "confirmed"),
    "conflicts": ("conflicts",),
}
"""What a chart draws, by the samples' names. `dispatched` is drawn as a rate."""
_SPIKE_SECONDS = 300
_SPIKE_CONFLICTS = 30
"""More than so many within so long, and WaybillAssignmentConflicts alerts (deploy/prometheus/rules.yml)."""
_JOBS = {"sweeper": "sweep", "crossCheck": "cross-check", "reconcile": "reconciliation", "retention": "retention"}
_OVERDUE_SECONDS = 600.0
_OVERDUE_PERIODS = 3
"""A job that has not begun for so long, and for so many of its periods, does not run."""
_LONG_WAIT_SECONDS = 1.0
_OLD_TRANSACTION_SECONDS = 300.0
"""As the alert WaybillDatabaseOldTransaction has it."""


@router.get("/console")
@router.get("/console/")
async def show_overview(request: Request, services: ServicesDep) -> Response:
    """Is it well? Strangers are asked to log in."""
    if request.state.session is None:
        return login_page(request, "/console")
    return page(request, "overview.html", **await _read(services))


@router.get("/console/badges")
async def show_badges(request: Request, services: ServicesDep) -> Response:
    """The counts beside the names of the pages."""
    async with services.database.read() as connection:
        metrics = await ops.read_metrics(connection, services.sweep_grace_seconds)
        drift_totals = await drift.drift_totals(connection)
    return page(request, "badges.html", **_figures(metrics, drift_totals))


async def _read(services: Services) -> dict[str, Any]:
    """The overview as its page shows it."""
    async with services.database.read() as connection:
        read = await read_overview(connection, services.sweep_grace_seconds)
    figures = _figures(read.metrics, read.drift_totals)
    figures |= _conflicts_lately(figures["conflicts"], read.samples)
    invariants = reports.show_invariants(read.checks)
    return {
        **figures,
        "invariants": invariants,
        "health": read.health,
        "troubles": [
            *_troubles(figures, invariants, read.health),
            *_not_run(services, read.health),
        ],
        "orders": {row.status: row.total for row in read.metrics.status_counts if row.noun == "orders"},
        "last_hour": _last_hour(read.samples),
    }


def _figures(metrics: ops.Metrics, drift_totals: Row[Any]) -> dict[str, Any]:
    values = metrics.values
    return {
        "backlog": values.outbox_backlog,
        "oldest_pending_seconds": values.outbox_oldest_pending_seconds,
        "failed": values.outbox_failed,
        "retry_attempts": values.outbox_retry_attempts,
        "dispatched": values.dispatched or 0,
        "stuck": values.stuck_reservations,
        "drifted_products": drift_totals.products,
        "drift_quantity": drift_totals.quantity,
        "pending_deliveries": values.pending_deliveries,
        "attention": values.deliveries_needing_attention,
        "oldest_transaction_seconds": values.oldest_xmin_age_seconds,
        "open_breakers": [row.name for row in metrics.breakers if not row.closed],
        "webhooks": sum(row.name not in RESERVED_NAMES for row in metrics.breakers),
        "conflicts": sum(row.total for row in metrics.conflicts),
    }


def _conflicts_lately(total: int, samples: Sequence[Row[Any]]) -> dict[str, Any]:
    """How many more there are than at the oldest sample of the time."""
    counted = [(row.at, row.values["conflicts"]) for row in samples if "conflicts" in row.values]
    lately = [earlier for at, earlier in counted if at >= counted[-1][0] - _SPIKE_SECONDS]
    in_spike = max(0, total - lately[0]) if lately else 0
    return {
        "conflicts_last_hour": max(0, total - counted[0][1]) if counted else 0,
        "conflicts_lately": in_spike,
        "conflicts_spike": in_spike > _SPIKE_CONFLICTS,
    }


def _troubles(
    figures: Mapping[str, Any], invariants: Mapping[str, Any], health: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """What is not well, each with where to look."""
    broken = [check["name"] for check in invariants["checks"] if not check["ok"]]
    unowned = sum(not relay["ownerAlive"] for relay in health["relays"])
    found = [
        (not health["workers"]["alive"], "No worker is alive", "/console#workers"),
        (bool(broken), f"{number_of(len(broken), 'invariant')} broken", "/console#invariants"),
        (figures["failed"], f"{number_of(figures['failed'], 'message')} failed", "/console/failures"),
        (figures["stuck"], f"{number_of(figures['stuck'], 'reservation')} stuck", "/console/reservations"),
        (
            figures["drifted_products"],
            f"{number_of(figures['drifted_products'], 'product')} drifted",
            "/console/inventory",
        ),
        (figures["open_breakers"], f"Not sent to: {', '.join(figures['open_breakers'])}", "/console/webhooks"),
        (
            figures["conflicts_spike"],
            f"{number_of(figures['conflicts_lately'], 'assignment conflict')} in 5 min",
            "/console/assignment",
        ),
        (
            figures["oldest_pending_seconds"] > OUTBOX_PATIENCE_SECONDS and not figures["open_breakers"],
            "The oldest message has been ready for more than 5 min",
            "/console#outbox",
        ),
        (health["workers"]["alive"] and unowned, f"{number_of(unowned, 'relay shard')} carried by nobody", "#workers"),
        (
            figures["attention"],
            f"{number_of(figures['attention'], 'delivery', 'deliveries')} in need of a person",
            "/console/attention",
        ),
        (_waits_long(health["database"]["lockWaits"]), "Sessions wait for locks", "/console#database"),
        (
            figures["oldest_transaction_seconds"] > _OLD_TRANSACTION_SECONDS,
            "A transaction has been open for more than 5 min",
            "/console#database",
        ),
        *((_failed_last(health[job]), f"The last {name} failed", "/console#jobs") for job, name in _JOBS.items()),
    ]
    return [(sentence, address) for there, sentence, address in found if there]


def _not_run(services: Services, health: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Jobs whose schedules do not run them, though somebody is there who could."""
    if not health["workers"]["alive"]:
        return []
    every = {"sweeper": services.sweep_seconds, "crossCheck": services.cross_check_seconds}
    idle = {job: health[job]["secondsSinceStart"] or 0.0 for job in every}
    return [
        (f"The last {_JOBS[job]} began {duration(idle[job])} ago: is its schedule paused?", "/console#jobs")
        for job, seconds in every.items()
        if idle[job] > max(_OVERDUE_SECONDS, _OVERDUE_PERIODS * seconds)
    ]


def _waits_long(waits: Sequence[Mapping[str, Any]]) -> bool:
    """Locks are waited for all the time, for moments; that is no trouble."""
    return any((wait["waitingSeconds"] or 0) > _LONG_WAIT_SECONDS for wait in waits)


def _failed_last(job: Mapping[str, Any]) -> bool:
    return job["lastErrorAt"] is not None and job["lastErrorAt"] > (job["lastFinishedAt"] or "")


# --- the last hour


@router.get("/console/charts")
async def get_charts(services: ServicesDep) -> JSONResponse:
    """The charts' points: `at` in seconds since the epoch, and each chart's series, null where nobody took samples."""
    async with services.database.read() as connection:
        samples = await read_samples(connection)
    return JSONResponse(_charts(samples))


def _charts(samples: Sequence[Row[Any]]) -> dict[str, Any]:
    by_bucket = {row.at: row.values for row in samples}
    at = range(samples[0].at, samples[-1].at + 1, BUCKET_SECONDS) if samples else range(0)
    charts = {
        chart: [[by_bucket.get(bucket, {}).get(name) for bucket in at] for name in names]
        for chart, names in _SERIES.items()
    }
    dispatched = [by_bucket.get(bucket, {}).get("dispatched") for bucket in at]
    charts["dispatched"] = [_rate_per_minute(dispatched)]
    return {"at": list(at), "charts": charts}


def _rate_per_minute(totals: Sequence[int | None]) -> list[float | None]:
    """How a counter grew from each sample to the next."""
    per_minute = 60 / BUCKET_SECONDS
    rates: list[float | None] = [None]
    for before, after in pairwise(totals):
        rates.append(None if before is None or after is None else (after - before) * per_minute)
    return rates if totals else []


def _last_hour(samples: Sequence[Row[Any]]) -> dict[str, list[tuple[float, float, float]]]:
    """Of each chart's series the newest, the lowest and the highest value: the charts in words."""
    charts = _charts(samples)["charts"]
    told: dict[str, list[tuple[float, float, float]]] = {}
    for chart, series in charts.items():
        known = [[value for value in values if value is not None] for values in series]
        told[chart] = [(values[-1], min(values), max(values)) for values in known if values]
    return told


# --- what can be done here


@router.post("/console/cross-check")
async def cross_check(request: Request, services: ServicesDep) -> Response:
    """Make rows and workflows agree now."""
    await ops_api.cross_check(request, services, await form_body(request, Reasoned))
    return said(request, "The cross-check has begun.", "/console")
