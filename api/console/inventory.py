"""Inventory: what drifted, and setting it right, the dry run first."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import inventory
from api.console.pages import form_body, go, page, validated
from api.models import NeedsReason
from api.problems import conflict
from api.services import ServicesDep
from db import ops
from domain.inventory import ReconciliationStatus

router = APIRouter()


@router.get("/console/inventory")
async def show_drift(request: Request, services: ServicesDep) -> Response:
    """Products whose counters disagree with their holds or with the ledger."""
    drift = await inventory.get_drift(services)
    async with services.database.read() as connection:
        workers = await ops.workers_alive(connection)
    return page(request, "inventory.html", drift=drift, workers=workers)


@router.post("/console/inventory/reconcile")
async def begin_dry_run(request: Request, services: ServicesDep) -> Response:
    """Say what a reconciliation would change, and change nothing."""
    asked = await form_body(request, NeedsReason)
    found = await inventory.reconcile(validated(inventory.Reconcile, {"reason": asked.reason}), request, services)
    return go(request, _address(found["operationId"]))


@router.get("/console/inventory/reconcile/{operation_id}")
async def show_reconciliation(operation_id: str, request: Request, services: ServicesDep) -> Response:
    """How far it is, and what it corrects."""
    found = await inventory.get_reconciliation(operation_id, services)
    return page(request, "reconciliation.html", operation=found, can_apply=_can_apply(found))


@router.post("/console/inventory/reconcile/{operation_id}/apply")
async def apply(operation_id: str, request: Request, services: ServicesDep) -> Response:
    """Do what a finished dry run said, to the products that it named; each is recomputed under its lock."""
    asked = await form_body(request, NeedsReason)
    dry_run = await inventory.get_reconciliation(operation_id, services)
    if not _can_apply(dry_run):
        raise conflict("nothing-to-apply", "Only a dry run that has ended and found something can be applied.")
    skus = [correction["sku"] for correction in dry_run["corrections"]][: inventory.MOST_SKUS]
    body = validated(inventory.Reconcile, {"dryRun": False, "skus": skus, "reason": asked.reason})
    found = await inventory.reconcile(body, request, services)
    return go(request, _address(found["operationId"]))


def _can_apply(operation: dict[str, object]) -> bool:
    done = operation["status"] == ReconciliationStatus.DONE
    return bool(operation["dryRun"] and done and operation["corrections"])


def _address(operation_id: str) -> str:
    return f"/console/inventory/reconcile/{operation_id}"
