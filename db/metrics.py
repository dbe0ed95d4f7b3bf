"""The fleet-wide metrics, made from rows at each read: counters survive every process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import Row

from db.ops import InvariantCheck, Metrics
from domain.assignment.states import AssignmentSource, ConflictKind


def sample_values(families: Iterable[Metric]) -> dict[str, float]:
    """Each sample's value by its name with labels, as Prometheus writes it."""
    values = {}
    for family in families:
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            values[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return values


def metric_families(metrics: Metrics, drift: Row[Any], invariants: Sequence[InvariantCheck]) -> Iterator[Metric]:
    """Every family of the contract, of one consistent read; but not what a process knows of itself."""
    yield from _outbox(metrics)
    yield from _inventory(metrics, drift)
    yield _by_status("ops_orders", "Orders by status.", "orders", metrics)
    yield _gauge(
        "ops_assignment_pending_deliveries",
        "Deliveries that have no courier yet.",
        metrics.values.pending_deliveries,
    )
    yield _gauge(
        "ops_assignment_needs_attention_deliveries",
        "Deliveries that need a person: nobody accepted, or their courier went offline with them.",
        metrics.values.deliveries_needing_attention,
    )
    conflicts = CounterMetricFamily(
        "ops_assignment_conflicts", "Attempts to assign that lost to somebody else's.", labels=["source", "kind"]
    )
    totals = {(source, kind): 0 for source in AssignmentSource for kind in ConflictKind}
    totals |= {(row.source, row.kind): row.total for row in metrics.conflicts}
    for labels, total in totals.items():
        conflicts.add_metric(labels, total)
    yield conflicts
    violations = GaugeMetricFamily(
        "ops_invariant_violations", "Rows that break a promise of Waybill's.", labels=["invariant"]
    )
    for check in invariants:
        violations.add_metric([check.name], check.violations)
    yield violations
    yield _gauge(
        "ops_database_oldest_xmin_age_seconds",
        "Age of the oldest transaction that keeps dead rows from being cleaned up.",
        metrics.values.oldest_xmin_age_seconds,
    )


def _outbox(metrics: Metrics) -> Iterator[Metric]:
    values = metrics.values
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
    errors = CounterMetricFamily("ops_outbox_dispatch_errors", "Attempts that did not deliver.", labels=["error_class"])
    for error_class in ("event", "endpoint", "unknown"):
        errors.add_metric([error_class], getattr(values, f"errors_{error_class}"))
    yield errors
    yield _counter("ops_outbox_failed_transitions", "Messages that became FAILED.", values.failed_transitions)
    breakers = GaugeMetricFamily(
        "ops_outbox_endpoint_open", "1 while a webhook, or the mail server, is not sent to.", labels=["endpoint"]
    )
    for row in metrics.breakers:
        breakers.add_metric([row.name], 0 if row.closed else 1)
    yield breakers


def _inventory(metrics: Metrics, drift: Row[Any]) -> Iterator[Metric]:
    yield _by_status("ops_inventory_reservations", "Reservations by status.", "reservations", metrics)
    yield _gauge(
        "ops_inventory_stuck_reservations",
        "Holds past their deadline by more than the grace.",
        metrics.values.stuck_reservations,
    )
    yield _gauge(
        "ops_inventory_reserved_stock_drift_products",
        "Products whose reserved stock is not the sum of their holds.",
        drift.products,
    )
    yield _gauge(
        "ops_inventory_reserved_stock_drift_qty_total",
        "Units of that drift, signs put aside.",
        drift.quantity,
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
