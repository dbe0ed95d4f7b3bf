"""A zone's rounds: wait for the batch, look, match, and give the deliveries one by one."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Row
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.heartbeat import heartbeats
from db.assignment import commit, zones
from db.engine import Database
from db.ops import database_time
from domain.assignment.matching import FreeCourier, Pair, WaitingDelivery, match
from domain.assignment.states import AssignmentSource, ZoneMode
from domain.ids import new_id
from domain.order import Place

log = structlog.get_logger(__name__)


def _solver_pool() -> ProcessPoolExecutor:
    """A process to solve in: the solver holds the interpreter, and Temporal's deadlines leave it no such time."""
    return ProcessPoolExecutor(
        max_workers=1, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )


def _end_with_parent() -> None:
    """A worker killed with -9 cannot end its helpers: they watch it."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class RoundOutcome:
    """What a round did."""

    assigned: int
    conflicts: int
    again: bool
    """More may be waiting: the batch was full, or couriers were lost to others between the look and the gift."""


class AssignmentActivities:
    """Rounds of the auto assigner."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._solver = _solver_pool()

    def close(self) -> None:
        """End the solver."""
        self._solver.shutdown(wait=False, cancel_futures=True)

    @activity.defn
    async def run_round(self, zone: str) -> RoundOutcome:
        """Run one round of a zone. A try that broke off has given what it gave; the next one sees the rest."""
        async with heartbeats():
            return await self._run_round(zone)

    async def _run_round(self, zone: str) -> RoundOutcome:
        await asyncio.sleep((await self._settings(zone)).batch_window_seconds)
        await self._database.transact(partial(zones.clear_wake, zone=zone))
        # Only now: a knob that was turned before the flag was cleared must be seen, nothing else tells of it.
        settings = await self._settings(zone)
        if settings.mode is ZoneMode.MANUAL:
            return RoundOutcome(0, 0, again=False)
        async with self._database.read() as connection:
            started_at = await database_time(connection)
            rows = await zones.round_inputs(connection, zone, settings.max_batch)
        deliveries, couriers = [_waiting(row) for row in rows[0]], [_free(row) for row in rows[1]]
        if not deliveries or not couriers:
            return RoundOutcome(0, 0, again=False)
        pairs = await self._solve(deliveries, couriers)
        round_id = new_id()
        conflicts = await self._give(round_id, pairs)
        inputs = {
            "deliveries": [asdict(delivery) for delivery in deliveries],
            "couriers": [asdict(courier) for courier in couriers],
        }
        record = partial(zones.record_round, round_id=round_id, zone=zone, started_at=started_at, inputs=inputs)
        await self._database.transact(partial(record, pairs=[asdict(pair) for pair in pairs], conflicts=conflicts))
        assigned = len(pairs) - conflicts
        log.info("round", zone=zone, round_id=round_id, assigned=assigned, conflicts=conflicts)
        full = len(deliveries) == settings.max_batch and assigned > 0
        return RoundOutcome(assigned, conflicts, again=full or conflicts > 0)

    async def _solve(self, deliveries: list[WaitingDelivery], couriers: list[FreeCourier]) -> list[Pair]:
        """Match in the solver's process; one that died costs a try, not the worker."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._solver, match, deliveries, couriers)
        except BrokenExecutor as error:
            self._solver = _solver_pool()
            raise ApplicationError("the solver died", type="SolverDied") from error

    async def _settings(self, zone: str) -> zones.ZoneSettings:
        async with self._database.read() as connection:
            return await zones.get_settings(connection, zone) or zones.ZoneSettings()

    async def _give(self, round_id: str, pairs: Sequence[Pair]) -> int:
        """Commit the winners one by one; answer how many were lost to others meanwhile."""
        conflicts = 0
        for pair in pairs:
            give = partial(
                commit.assign,
                courier_id=pair.courier_id,
                delivery_ids=[pair.delivery_id],
                source=AssignmentSource.AUTO,
                round_id=round_id,
            )
            conflicts += len(await self._database.transact(give))
        return conflicts


def _waiting(row: Row[Any]) -> WaitingDelivery:
    return WaitingDelivery(
        delivery_id=row.delivery_id,
        pickup=Place(**row.pickup) if row.pickup else None,
        dropoff=Place(**row.dropoff),
        seconds_to_promise=row.seconds_to_promise,
        not_by=tuple(row.not_by),
    )


def _free(row: Row[Any]) -> FreeCourier:
    return FreeCourier(row.courier_id, Place(row.lat, row.lng), row.slots)
