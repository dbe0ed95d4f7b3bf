"""A zone's rounds: wait for the batch, end what is overdue, look, match, and give deliveries to couriers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import structlog
from sqlalchemy import Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio import activity

from activities.heartbeat import heartbeats
from activities.solver import Solver, decide_round
from db.assignment import commit, requeue, rounds, zones
from db.assignment.commit import Conflict
from db.assignment.rounds import Hurry
from db.assignment.zones import ZoneSettings
from db.engine import Database, is_lock_timeout, wait_for_locks
from db.ops import database_time
from domain.assignment.states import AssignmentSource, ZoneMode
from domain.assignment.view import FreeCourier, Pair, Policy, RoundView, WaitingDelivery
from domain.ids import new_id
from domain.order import Place

log = structlog.get_logger(__name__)
Result = TypeVar("Result")

DEADLINES_TOGETHER_SECONDS = 0.25
"""Offers that end within so little time are one round's work, when the last of them ends."""
_PROMISE_NEAR_SECONDS = 300.0
"""A delivery that is due at its door so soon, or late already, is not kept waiting for a batch."""
_WINNERS_PER_TRANSACTION = 250
_LOCK_SECONDS = 0.5
"""So long all of them wait where one is locked, before each is tried alone."""
_CONNECTIONS = 8
"""Of the worker's pool, for all rounds that run at once."""
_CONNECTIONS_OF_LOCKED = 4
"""Of those, for winners that are tried alone: other zones' rounds go on."""


@dataclass(frozen=True)
class RoundOutcome:
    """What a round, or several at once, did."""

    assigned: int
    conflicts: int
    again: bool
    """More may be waiting: the batch was full, or couriers were lost to others between the look and the gift."""
    deadline_seconds: float | None = None
    """Until the zone's next offers end; None where there are none."""
    at_once: bool = False
    """What may be waiting does not wait for a batch: one was full, or it was asked for in vain and lost again."""
    held: bool = False
    """Offers were over, and none of them could be ended: others hold them locked."""


class AssignmentActivities:
    """Rounds of the auto assigner."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.solver = Solver()
        self._connections = asyncio.Semaphore(_CONNECTIONS)

    def close(self) -> None:
        """End the solver."""
        self.solver.close()

    @activity.defn
    async def run_round(self, zone: str, at_once: bool = False) -> RoundOutcome:
        """Run a zone's rounds. A try that broke off has given what it gave; the next one sees the rest.

        `at_once`: an offer is over, or the last batch was full, and what is left does not wait for another one.
        """
        async with heartbeats():
            if not at_once:
                await self._wait_for_batch(zone)
            return await self._run_rounds(zone, at_once)

    async def _wait_for_batch(self, zone: str) -> None:
        settings = await self._settings(zone)
        await asyncio.sleep(batch_window(settings, await self._hurry(zone)))

    async def _run_rounds(self, zone: str, at_once: bool) -> RoundOutcome:
        """As many rounds at once as the zone allows, each with a share of the deliveries; all see all couriers."""
        await self._transact(partial(zones.clear_wake, zone=zone))
        # Only now: a knob that was turned before the flag was cleared must be seen, nothing else tells of it.
        settings = await self._settings(zone)
        over, ended = await self._expire_offers(zone)
        at_once = at_once or ended > 0
        parts = range(settings.parallel_rounds) if settings.mode is ZoneMode.AUTO else ()
        running = [self._run_round(zone, settings, part) for part in parts]
        # All end before one's failure is told: the next try must not meet them.
        done = [_done(each) for each in await asyncio.gather(*running, return_exceptions=True)]
        again = any(each.again for each in done)
        return RoundOutcome(
            assigned=sum(each.assigned for each in done),
            conflicts=sum(each.conflicts for each in done),
            again=again,
            deadline_seconds=(await self._hurry(zone)).seconds_to_deadline,
            at_once=any(each.at_once for each in done) or (again and at_once),
            held=over > 0 and ended == 0,
        )

    async def _expire_offers(self, zone: str) -> tuple[int, int]:
        """End what is over; answer how many were, and were ended. What somebody holds locked has its deadline again."""
        all_over = all_ended = 0
        while True:
            over, ended = await self._transact(partial(requeue.expire_offers, zone=zone))
            if ended == 0:
                return all_over + over, all_ended
            all_over, all_ended = all_over + ended, all_ended + ended

    async def _run_round(self, zone: str, settings: ZoneSettings, part: int) -> RoundOutcome:
        round_id = new_id()
        started_at, waiting, free = await self._read(
            partial(_look, zone=zone, max_batch=settings.max_batch, part=part, parts=settings.parallel_rounds)
        )
        if not waiting or not free:
            return RoundOutcome(0, 0, again=False)
        policy = Policy(top_candidates=settings.top_candidates)
        view = RoundView(tuple(map(_waiting, waiting)), tuple(map(_free, free)), policy)
        decision, inputs = await self.solver.run(decide_round, view)
        pairs = decision.pairs
        losers = await self._give(round_id, pairs, settings.accept_window_seconds)
        record = partial(
            rounds.record_round,
            round_id=round_id,
            zone=zone,
            started_at=started_at,
            inputs=inputs,
            seen=(len(waiting), len(free)),
            pairs=[asdict(pair) for pair in pairs],
            losers=losers,
        )
        await self._transact(record)
        assigned = len(pairs) - len(losers)
        log.info("round", zone=zone, round_id=round_id, assigned=assigned, conflicts=len(losers))
        full = len(waiting) == settings.max_batch and assigned > 0
        return RoundOutcome(assigned, len(losers), again=full or bool(losers), at_once=full)

    async def _give(self, round_id: str, pairs: Sequence[Pair], accept_window_seconds: float) -> list[Conflict]:
        """Commit the winners, many at a time; answer those that were lost to others meanwhile.

        Each is judged by itself: who loses changes nothing and takes nobody along.
        """
        give = partial(
            commit.assign,
            source=AssignmentSource.AUTO,
            round_id=round_id,
            accept_window_seconds=accept_window_seconds,
            partial=True,
        )

        async def give_many(connection: AsyncConnection, pairs: commit.Pairs) -> list[Conflict]:
            await wait_for_locks(connection, _LOCK_SECONDS)
            return await give(connection, pairs=pairs)

        losers: list[Conflict] = []
        for start in range(0, len(pairs), _WINNERS_PER_TRANSACTION):
            some = [(pair.delivery_id, pair.courier_id) for pair in pairs[start : start + _WINNERS_PER_TRANSACTION]]
            try:
                losers += await self._transact(partial(give_many, pairs=some))
            except DBAPIError as error:
                if not is_lock_timeout(error):
                    raise
                losers += await self._give_singly(some, give)
        return losers

    async def _give_singly(self, pairs: commit.Pairs, give: Callable[..., Awaitable[list[Conflict]]]) -> list[Conflict]:
        """One of them waited too long for a lock: the others need not lose by it, nor wait for it."""
        few = asyncio.Semaphore(_CONNECTIONS_OF_LOCKED)

        async def give_one(pair: tuple[str, str]) -> list[Conflict]:
            async with few, self._connections:
                return await commit.attempt(self._database, [pair], AssignmentSource.AUTO, partial(give, pairs=[pair]))

        ended = await asyncio.gather(*map(give_one, pairs), return_exceptions=True)
        return [loser for each in ended for loser in _done(each)]

    async def _hurry(self, zone: str) -> Hurry:
        return await self._read(partial(rounds.read_hurry, zone=zone, together_seconds=DEADLINES_TOGETHER_SECONDS))

    async def _settings(self, zone: str) -> ZoneSettings:
        return await self._read(partial(zones.get_settings, zone=zone)) or ZoneSettings()

    async def _transact(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        async with self._connections:
            return await self._database.transact(work)

    async def _read(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        async with self._connections, self._database.read() as connection:
            return await work(connection)


def _done(ended: Result | BaseException) -> Result:
    if isinstance(ended, BaseException):
        raise ended
    return ended


def batch_window(settings: ZoneSettings, hurry: Hurry) -> float:
    """How many seconds a round waits for more: shorter where an offer ends or a promise comes near before that."""
    window = settings.batch_window_seconds
    if hurry.seconds_to_deadline is not None:
        window = min(window, max(hurry.seconds_to_deadline, DEADLINES_TOGETHER_SECONDS))
    if hurry.seconds_to_promise is not None:
        window = min(window, hurry.seconds_to_promise - _PROMISE_NEAR_SECONDS)
    return max(window, 0.0)


async def _look(
    connection: AsyncConnection, zone: str, max_batch: int, part: int, parts: int
) -> tuple[datetime, Sequence[Row[Any]], Sequence[Row[Any]]]:
    """The database's time, what waits and who is free, in one snapshot."""
    now = await database_time(connection)
    return now, *await rounds.round_inputs(connection, zone, max_batch, part, parts)


def _waiting(row: Row[Any]) -> WaitingDelivery:
    return WaitingDelivery(
        delivery_id=row.delivery_id,
        pickup=Place(**row.pickup) if row.pickup else None,
        dropoff=Place(**row.dropoff),
        seconds_to_promise=row.seconds_to_promise,
        waiting_seconds=row.waiting_seconds,
        not_by=tuple(row.not_by),
    )


def _free(row: Row[Any]) -> FreeCourier:
    return FreeCourier(row.courier_id, Place(row.lat, row.lng), row.slots)
