"""The metrics' Prometheus text, made at each scrape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


def render_metrics(families: Iterable[Metric], uptime_seconds: float) -> bytes:
    """The Prometheus text of the fleet's metrics, and of this process's one."""
    registry = CollectorRegistry()
    uptime = GaugeMetricFamily("process_uptime_seconds", "Since this API process started.", value=uptime_seconds)
    registry.register(_Once([*families, uptime]))
    return generate_latest(registry)


class _Once(Collector):
    """Hands out what was read."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """The families, in their order."""
        yield from self._families
