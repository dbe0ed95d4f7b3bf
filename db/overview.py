"""What the console's overview reads: everything that tells whether it is well, on one snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from db import ops, reports
from db.inventory import drift
from db.ops import InvariantCheck, Metrics
from db.samples import read_samples


@dataclass(frozen=True)
class Overview:
    """The house at one moment, and its last hour."""

    metrics: Metrics
    drift_totals: Row[Any]
    checks: list[InvariantCheck]
    health: dict[str, Any]
    samples: Sequence[Row[Any]]


async def read_overview(connection: AsyncConnection, grace_seconds: float) -> Overview:
    """Read it in the caller's one transaction; no row that is over is read, however many there are."""
    return Overview(
        metrics=await ops.read_metrics(connection, grace_seconds),
        drift_totals=await drift.drift_totals(connection),
        checks=await ops.check_invariants(connection),
        health=await reports.health_report(connection),
        samples=await read_samples(connection),
    )
