"""Rounds of the auto assigner: what each saw, gave and lost."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api import dispatch
from api.console.pages import page
from api.console.paging import OfZone, ShortPage
from api.services import ServicesDep

router = APIRouter()


@router.get("/console/rounds")
async def list_rounds(
    request: Request, services: ServicesDep, short_page: Annotated[ShortPage, Depends()], zone: OfZone = ""
) -> Response:
    """Every zone's rounds, or one's, newest first."""
    found = await dispatch.list_rounds(services, short_page, zone.strip() or None)
    return page(request, "rounds.html", **found, zone=zone.strip())


@router.get("/console/rounds/{round_id}")
async def show_round(round_id: str, request: Request, services: ServicesDep) -> Response:
    """A round: what came of each delivery that it saw, and who was free."""
    found = await dispatch.get_round(round_id, services)
    return page(request, "round.html", round=found, fates=_fates(found))


def _fates(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each delivery that the round saw: who was chosen, at what cost and why, and what that was lost to.

    Nobody was chosen where `courierId` is None; `why` is None where the round's inputs do not tell any more.
    """
    reasons = {each["deliveryId"]: each for each in (found["explanation"] or {}).get("deliveries", ())}
    pairs = {pair["deliveryId"]: pair for pair in found["pairs"]}
    conflicts = {conflict["deliveryId"]: conflict for conflict in found["conflicts"]}
    nobody = {"courierId": None, "costSeconds": None}
    return [
        {
            **nobody,
            **delivery,
            **pairs.get(delivery["deliveryId"], {}),
            "lost": conflicts.get(delivery["deliveryId"]),
            "why": reasons.get(delivery["deliveryId"]),
        }
        for delivery in found["inputs"]["deliveries"]
    ]
