"""Products, stuck reservations, drift and reconciliation."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy import Row

from api.models import (
    Name,
    NeedsReason,
    OptionalReason,
    Page,
    Reasoned,
    Stock,
    Text,
    actor,
    aware_time,
    big_integer,
    time,
)
from api.problems import Problem, conflict, invalid, not_found
from api.services import MISSING, RUNNING, Services, ServicesDep
from db import reports
from db.inventory import drift, holds, products
from db.inventory.holds import StuckReservation
from db.inventory.products import Product, StockBelowReserved
from domain.ids import new_id
from domain.inventory import ReconciliationStatus, StuckCause
from workflows.inventory import ReconcileWorkflow, SweepWorkflow

router = APIRouter()


# --- products


class PutProduct(Reasoned):
    """The body of `PUT /api/admin/products/{sku}`."""

    name: Text
    stock: Stock


@router.put("/api/admin/products/{sku}")
async def put_product(sku: Name, body: PutProduct, request: Request, services: ServicesDep) -> JSONResponse:
    """Set a product's name and stock, as a recorded adjustment."""
    try:
        created = await services.database.transact(
            lambda connection: products.put_product(
                connection, sku, body.name, body.stock, actor=actor(request), reason=body.reason
            )
        )
    except StockBelowReserved as error:
        raise conflict(
            "stock-below-reserved", "The stock would fall under what is reserved.", reservedStock=error.reserved
        ) from error
    return JSONResponse(await get_product(sku, services), 201 if created else 200)


@router.get("/api/products/{sku}")
async def get_product(sku: str, services: ServicesDep) -> dict[str, Any]:
    """One product."""
    async with services.database.read() as connection:
        found = await products.get_products(connection, [sku])
    if sku not in found:
        raise not_found("product")
    return _show_product(found[sku])


@router.get("/api/products")
async def list_products(services: ServicesDep, page: Annotated[Page, Depends()]) -> dict[str, Any]:
    """Products, newest first."""
    after = page.after(aware_time, str)
    async with services.database.read() as connection:
        rows = await products.list_products(connection, (after[0], after[1]) if after else None, page.limit + 1)
    return page.answer(rows, _show_product, lambda product: (product.created_at, product.sku))


def _show_product(product: Product) -> dict[str, Any]:
    return {
        "sku": product.sku,
        "name": product.name,
        "stock": product.stock,
        "reservedStock": product.reserved,
        "available": product.stock - product.reserved,
    }


async def refuse_unknown_products(services: Services, skus: Collection[str]) -> None:
    """Raise the problem of SKUs that no product has."""
    async with services.database.read() as connection:
        known = await products.get_products(connection, skus)
    if unknown := sorted(set(skus) - known.keys()):
        raise invalid("unknown-sku", "There is no such product.", skus=unknown)


# --- stuck reservations


@router.get("/api/admin/ops/reservations/stuck")
async def list_stuck(services: ServicesDep, page: Annotated[Page, Depends()]) -> dict[str, Any]:
    """Holds that outlived their deadline by more than the grace, and why: from the rows and their workflows."""
    after = page.after(aware_time, big_integer)
    async with services.database.read() as connection:
        rows = await holds.stuck_reservations(
            connection, services.sweep_grace_seconds, (after[0], after[1]) if after else None, page.limit + 1
        )
    shown = rows[: page.limit]
    statuses = await services.workflow_statuses(services.names.order(row.order_id) for row in shown)
    return page.answer(
        rows,
        lambda row: _show_stuck(services, row, statuses[services.names.order(row.order_id)]),
        lambda row: (row.expires_at, row.reservation_id),
    )


def _show_stuck(services: Services, row: StuckReservation, status: str | None) -> dict[str, Any]:
    cause = None
    if status == MISSING:
        cause = StuckCause.WORKFLOW_MISSING
    elif status is not None:
        cause = StuckCause.WORKFLOW_RUNNING_LATE if status == RUNNING else StuckCause.WORKFLOW_CLOSED
    return {
        "reservationId": str(row.reservation_id),
        "orderId": row.order_id,
        "sku": row.sku,
        "quantity": row.quantity,
        "expiresAt": time(row.expires_at),
        "overdueSeconds": round(row.overdue_seconds, 3),
        "cause": cause,
        "workflow": {**services.workflow_link(services.names.order(row.order_id)), "status": status},
    }


@router.post("/api/admin/ops/reservations/sweep", status_code=202)
async def sweep(request: Request, services: ServicesDep, body: OptionalReason = None) -> dict[str, Any]:
    """End overdue holds beyond the grace now."""
    await services.require_worker()
    operation_id = new_id()
    reason = body.reason if body else None
    workflow_id = services.names.sweep(operation_id)
    await services.start(SweepWorkflow.run, [], workflow_id)
    await services.database.transact(
        lambda connection: holds.record_sweep(connection, operation_id, actor=actor(request), reason=reason)
    )
    return {"operationId": operation_id, "workflow": services.workflow_link(workflow_id)}


# --- drift


@router.get("/api/admin/ops/inventory/drift")
async def get_drift(services: ServicesDep) -> dict[str, Any]:
    """Products whose counters disagree with their holds or with the ledger, the holds beside each."""
    async with services.database.read() as connection:
        return await reports.drift_report(connection)


MOST_SKUS = 10_000
"""What one reconciliation can be told to look at."""


class Reconcile(NeedsReason):
    """The body of `POST …/inventory/reconcile`."""

    dry_run: bool = True
    skus: Annotated[list[Text], Field(min_length=1, max_length=MOST_SKUS)] | None = None


@router.post("/api/admin/ops/inventory/reconcile", status_code=202)
async def reconcile(body: Reconcile, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Set drifted counters right; by default only say what would change."""
    await refuse_unknown_products(services, body.skus or [])
    await services.require_worker()
    operation_id = new_id()
    await services.database.transact(
        lambda connection: drift.begin_reconciliation(
            connection, operation_id, dry_run=body.dry_run, skus=body.skus, actor=actor(request), reason=body.reason
        )
    )
    try:
        await services.start(ReconcileWorkflow.run, [operation_id], services.names.reconcile(operation_id))
    except Problem:
        await services.database.transact(partial(drift.fail_reconciliation, operation_id=operation_id))
        raise
    return await get_reconciliation(operation_id, services)


@router.get("/api/admin/ops/inventory/reconcile/{operation_id}")
async def get_reconciliation(operation_id: str, services: ServicesDep) -> dict[str, Any]:
    """How far a reconciliation is, and each of its corrections."""
    async with services.database.read() as connection:
        found = await drift.get_reconciliation(connection, operation_id)
        if found is None:
            raise not_found("reconciliation")
        row, corrections = found
        total = len(corrections)
        if row.status == ReconciliationStatus.RUNNING:
            total = await drift.products_to_reconcile(connection, row)
    return {
        "operationId": row.operation_id,
        "status": row.status,
        "dryRun": row.dry_run,
        "reason": row.reason,
        "total": total,
        "done": len(corrections),
        "createdAt": time(row.created_at),
        "finishedAt": time(row.finished_at),
        "corrections": [_show_correction(correction) for correction in corrections],
        "workflow": services.workflow_link(services.names.reconcile(operation_id)),
    }


def _show_correction(row: Row[Any]) -> dict[str, Any]:
    return {
        "sku": row.sku,
        "reservedStockBefore": row.reserved_before,
        "reservedStockAfter": row.reserved_after,
        "ledgerStockBefore": row.ledger_before,
        "ledgerStockAfter": row.ledger_after,
        "applied": row.applied,
        "at": time(row.at),
    }
