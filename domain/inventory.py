"""Products, the reservations that hold them, and the ledger of why stock changed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ReservationStatus(StrEnum):
    """ACTIVE counts in the product's reserved stock; COMMITTED has left stock and reserved stock."""

    ACTIVE = "ACTIVE"
    COMMITTED = "COMMITTED"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"


class ReconciliationStatus(StrEnum):
    """FAILED: it could not be started; another one may be asked for."""

    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"


class StockMovement(StrEnum):
    """Why a product's stock changed; the kinds of the stock ledger's entries."""

    ADJUSTED = "adjusted"
    COMMITTED = "committed"
    RETURNED = "returned"
    RECONCILED = "reconciled"


class StuckCause(StrEnum):
    """Why a hold outlived its deadline."""

    WORKFLOW_MISSING = "workflow_missing"
    WORKFLOW_CLOSED = "workflow_closed"
    WORKFLOW_RUNNING_LATE = "workflow_running_late"


@dataclass(frozen=True)
class ReconcileProgress:
    """How far a reconciliation is: products are gone through by SKU."""

    drifted_products: int = 0
    """Found so far; each was set right, or in a dry run logged."""
    after_sku: str = ""
    """The last one."""
    done: bool = False
