"""A counter that somebody edited by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from local.drills.scene import Drill, Incident, Scene

_SKU = "drill-drift"
_UNITS = 3


@asynccontextmanager
async def _stage(scene: Scene) -> AsyncIterator[Incident]:
    await scene.stock(_SKU, 10)
    await _edit(scene, _UNITS)
    try:

        async def drifted() -> bool:
            report = await scene.admin("GET", "/api/admin/ops/inventory/drift")
            return any(item["sku"] == _SKU and item["drift"] for item in report["items"])

        await scene.until(drifted, f"{_SKU} drifted")

        async def cleared() -> bool:
            return not await drifted()

        yield Incident(
            f"The reserved stock of product {_SKU}, which nobody holds, was set to {_UNITS} by hand.", cleared
        )
    finally:
        if not scene.leaves_it:
            await _edit(scene, 0)
            await scene.empty_shelf(_SKU)


async def _edit(scene: Scene, units: int) -> None:
    """What the hand does: no order ever holds this product."""
    connection = await asyncpg.connect(scene.stack.database_url)
    try:
        await connection.execute("UPDATE products SET reserved = $2 WHERE sku = $1", _SKU, units)
    finally:
        await connection.close()


DRILL = Drill(
    metric="ops_inventory_reserved_stock_drift_products",
    alert="WaybillInventoryDrift",
    section="Reserved stock has drifted",
    stage=_stage,
)
