"""The words of the stock-keeping, as the API and the ledger use them."""

from __future__ import annotations

from domain.inventory import ReservationStatus, StockMovement, StuckCause


def test_a_reservation_is_in_one_of_the_contracts_states() -> None:
    assert {str(status) for status in ReservationStatus} == {"ACTIVE", "COMMITTED", "RELEASED", "EXPIRED"}


def test_a_stuck_hold_has_one_of_the_contracts_causes() -> None:
    assert {str(cause) for cause in StuckCause} == {"workflow_missing", "workflow_closed", "workflow_running_late"}


def test_stock_changes_for_one_of_four_reasons() -> None:
    assert {str(movement) for movement in StockMovement} == {"adjusted", "committed", "returned", "reconciled"}
