"""The fleet-wide metrics, made from rows at each scrape: counters survive every process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Row

from db.ops import InvariantCheck, Metrics
from domain.assignment.states import AssignmentSource, ConflictKind


def render_metrics(metrics: Metrics, drift: Row[Any], invariants: list[InvariantCheck], uptime_seconds: float) -> bytes:
    """The Prometheus text of one consistent read."""
    registry = CollectorRegistry()
    registry.register(_Read(metrics, drift, invariants, uptime_seconds))
    return generate_latest(registry)


class _Read(Collector):
    """Turns one read into metric families."""

    def __init__(
        self, metrics: Metrics, drift: Row[Any], invariants: list[InvariantCheck], uptime_seconds: float
    ) -> None:
        self._metrics = metrics
        self._drift = drift
        self._invariants = invariants
        self._uptime_seconds = uptime_seconds

    def collect(self) -> Iterator[Metric]:
        """Every family of the contract that the tables of today can tell."""
        yield from self._outbox()
        yield from self._inventory()
        yield _by_status("ops_orders", "Orders by status.", "orders", self._metrics)
        yield _gauge(
            "ops_assignment_pending_deliveries",
            "Deliveries that have no courier yet.",
            self._metrics.values.pending_deliveries,
        )
        conflicts = CounterMetricFamily(
            "ops_assignment_conflicts", "Attempts to assign that lost to somebody else's.", labels=["source", "kind"]
        )
        totals = {(source, kind): 0 for source in AssignmentSource for kind in ConflictKind}
        totals |= {(row.source, row.kind): row.total for row in self._metrics.conflicts}
        for labels, total in totals.items():
            conflicts.add_metric(labels, total)
        yield conflicts
        violations = GaugeMetricFamily(
            "ops_invariant_violations", "Rows that break a promise of Waybill's.", labels=["invariant"]
        )
        for check in self._invariants:
            violations.add_metric([check.name], check.violations)
        yield violations
        yield _gauge(
            "ops_database_oldest_xmin_age_seconds",
            "Age of the oldest transaction that keeps dead rows from being cleaned up.",
            self._metrics.values.oldest_xmin_age_seconds,
        )
        yield _gauge("process_uptime_seconds", "Since this API process started.", self._uptime_seconds)

    def _outbox(self) -> Iterator[Metric]:
        values = self._metrics.values
        yield _gauge(
            "ops_outbox_backlog_size",
            "Messages not delivered yet: ready, retried or waiting aside.",
            values.outbox_backlog,
        )
        yield _gauge(
            "ops_outbox_oldest_pending_seconds",
            "How long the oldest ready message has been ready.",
            values.outbox_oldest_pending_seconds,
        )
        yield _gauge("ops_outbox_failed_events", "Messages that wait for an admin.", values.outbox_failed)
        yield _gauge(
            "ops_outbox_retry_attempts_sum",
            "Attempts made for the messages that are failing now.",
            values.outbox_retry_attempts,
        )
        yield _counter("ops_outbox_dispatched", "Messages delivered.", values.dispatched)
        errors = CounterMetricFamily(
            "ops_outbox_dispatch_errors", "Attempts that did not deliver.", labels=["error_class"]
        )
        for error_class in ("event", "endpoint", "unknown"):
            errors.add_metric([error_class], getattr(values, f"errors_{error_class}"))
        yield errors
        yield _counter("ops_outbox_failed_transitions", "Messages that became FAILED.", values.failed_transitions)
        breakers = GaugeMetricFamily(
            "ops_outbox_endpoint_open", "1 while a webhook is not sent to.", labels=["endpoint"]
        )
        for row in self._metrics.breakers:
            breakers.add_metric([row.name], 0 if row.closed else 1)
        yield breakers

    def _inventory(self) -> Iterator[Metric]:
        yield _by_status("ops_inventory_reservations", "Reservations by status.", "reservations", self._metrics)
        yield _gauge(
            "ops_inventory_stuck_reservations",
            "Holds past their deadline by more than the grace.",
            self._metrics.values.stuck_reservations,
        )
        yield _gauge(
            "ops_inventory_reserved_stock_drift_products",
            "Products whose reserved stock is not the sum of their holds.",
            self._drift.products,
        )
        yield _gauge(
            "ops_inventory_reserved_stock_drift_qty_total",
            "Units of that drift, signs put aside.",
            self._drift.quantity,
        )


def _gauge(name: str, description: str, value: float) -> Metric:
    return GaugeMetricFamily(name, description, value=float(value))


def _counter(name: str, description: str, value: float) -> Metric:
    return CounterMetricFamily(name, description, value=float(value))


def _by_status(name: str, description: str, noun: str, metrics: Metrics) -> Metric:
    family = GaugeMetricFamily(name, description, labels=["status"])
    for row in metrics.status_counts:
        if row.noun == noun:
            family.add_metric([row.status], row.total)
    return family
