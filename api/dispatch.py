"""Dispatch as admins see it: rounds and what they lost, a zone's knobs, and what needs a person."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from pydantic.alias_generators import to_camel
from sqlalchemy import Row

from activities.solver import explain_round
from api.assignment import show_delivery
from api.models import Name, Page, Reasoned, actor, aware_time, time
from api.problems import not_found
from api.services import ServicesDep
from db.assignment import deliveries, rounds, zones
from db.reports import conflicts_report

router = APIRouter(prefix="/api/admin/ops/assignment")

# --- knobs


class Run(Reasoned):
    """The body of `POST …/assignment/run`."""

    zone: Name


@router.post("/run")
async def run_round(body: Run, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Have a zone's dispatch run a round now."""
    await services.require_worker()
    await services.database.transact(
        partial(zones.ask_for_round, zone=body.zone, actor=actor(request), reason=body.reason)
    )
    return {"zone": body.zone, "workflow": services.workflow_link(services.names.dispatch(body.zone))}


Seconds = Annotated[float, Field(ge=0, le=3600)]


class PatchSettings(Reasoned):
    """The body of `PATCH …/assignment/settings/{zone}`: the knobs to change."""

    batch_window_seconds: Annotated[float, Field(ge=0, le=60)] | None = None
    max_batch: Annotated[int, Field(ge=1, le=1000)] | None = None
    parallel_rounds: Annotated[int, Field(ge=1, le=32)] | None = None
    top_candidates: Annotated[int, Field(ge=1, le=1000)] | None = None
    accept_window_seconds: Seconds | None = None
    max_offers: Annotated[int, Field(ge=1, le=100)] | None = None
    mode: Literal["auto", "manual"] | None = None


@router.patch("/settings/{zone}")
async def patch_settings(zone: Name, body: PatchSettings, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Change a zone's knobs, from its next round on."""
    changes = body.model_dump(exclude_none=True, exclude={"reason"})
    settings = await services.database.transact(
        partial(zones.change_settings, zone=zone, changes=changes, actor=actor(request), reason=body.reason)
    )
    return _show_settings(zone, settings)


@router.get("/settings/{zone}")
async def get_settings(zone: str, services: ServicesDep) -> dict[str, Any]:
    """A zone's knobs."""
    async with services.database.read() as connection:
        settings = await zones.get_settings(connection, zone)
    if settings is None:
        raise not_found("zone")
    return _show_settings(zone, settings)


def _show_settings(zone: str, settings: zones.ZoneSettings) -> dict[str, Any]:
    return {
        "zone": zone,
        "batchWindowSeconds": settings.batch_window_seconds,
        "maxBatch": settings.max_batch,
        "parallelRounds": settings.parallel_rounds,
        "topCandidates": settings.top_candidates,
        "acceptWindowSeconds": settings.accept_window_seconds,
        "maxOffers": settings.max_offers,
        "mode": settings.mode,
    }


# --- what was lost, and what needs a person


@router.get("/conflicts")
async def list_conflicts(services: ServicesDep) -> dict[str, Any]:
    """How many attempts lost, by who tried and what they lost to, in all and by zone; and what lost to nobody."""
    async with services.database.read() as connection:
        return await conflicts_report(connection)


@router.get("/attention")
async def list_attention(
    services: ServicesDep, page: Annotated[Page, Depends()], zone: Name | None = None
) -> dict[str, Any]:
    """Deliveries that need a person, newest first; `attention` says why, the timeline since when."""
    after = page.after(aware_time, str)
    async with services.database.read() as connection:
        rows = await deliveries.deliveries_needing_attention(
            connection, zone, (after[0], after[1]) if after else None, page.limit + 1
        )
    return page.answer(rows, show_delivery, lambda row: (row.created_at, row.delivery_id))


# --- rounds


@router.get("/rounds")
async def list_rounds(
    services: ServicesDep, page: Annotated[Page, Depends()], zone: Name | None = None
) -> dict[str, Any]:
    """Rounds, newest first: how much they saw, gave and lost."""
    after = page.after(str)
    async with services.database.read() as connection:
        rows = await rounds.list_rounds(connection, zone, after[0] if after else None, page.limit + 1)
    return page.answer(rows, _show_round, lambda row: (row.round_id,))


@router.get("/rounds/{round_id}")
async def get_round(round_id: str, services: ServicesDep) -> dict[str, Any]:
    """A round with what it saw, decided and lost, and why: its costs, runners-up and a proof, worked out now."""
    async with services.database.read() as connection:
        row = await rounds.get_round(connection, round_id)
    if row is None:
        raise not_found("round")
    explanation = await services.solver.run(explain_round, row.inputs)
    return {
        **_show_round(row),
        "inputs": _camel(row.inputs),
        "pairs": _camel(row.pairs),
        "conflicts": _camel(row.losers),
        "explanation": _camel(asdict(explanation)) if explanation else None,
    }


def _show_round(row: Row[Any]) -> dict[str, Any]:
    return {
        "roundId": row.round_id,
        "zone": row.zone,
        "startedAt": time(row.started_at),
        "finishedAt": time(row.finished_at),
        "deliveryCount": row.deliveries,
        "courierCount": row.couriers,
        "assignedCount": row.assigned,
        "conflictCount": row.conflicts,
    }


def _camel(value: Any) -> Any:
    """What was stored in the house's own words, in the API's."""
    if isinstance(value, dict):
        return {to_camel(name): _camel(each) for name, each in value.items()}
    return [_camel(each) for each in value] if isinstance(value, list | tuple) else value
