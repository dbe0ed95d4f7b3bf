"""Zones: their wake flags and their knobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.ops import record_action
from db.outbox.write import write_events
from domain.assignment.states import ZoneMode
from domain.outbox import zone_woken

# --- waking

_SOMETHING_WAITS = text("""
    SELECT EXISTS (SELECT FROM deliveries WHERE zone = :zone AND status = 'PENDING' AND NOT pinned)
""")


async def wake_if_waiting(connection: AsyncConnection, zone: str) -> None:
    """Have the zone's dispatch look again, if a delivery waits there: a courier came free.

    A delivery that starts to wait at this moment wakes the zone by itself.
    """
    if await connection.scalar(_SOMETHING_WAITS, {"zone": zone}):
        await write_events(connection, [zone_woken(zone)])


_ENSURE = text("INSERT INTO zones (zone) VALUES (:zone) ON CONFLICT (zone) DO NOTHING")
_SET_WAKE = text("""
    UPDATE zones SET wake = true WHERE zone = :zone AND NOT (wake AND wake_signalled) RETURNING wake_generation
""")
_SIGNALLED = text("""
    UPDATE zones SET wake_signalled = true WHERE zone = :zone AND wake AND wake_generation = :generation
""")
_CLEAR_WAKE = text("""
    UPDATE zones SET wake = false, wake_signalled = false, wake_generation = wake_generation + 1
    WHERE zone = :zone AND wake
""")


async def set_wake(connection: AsyncConnection, zone: str) -> int | None:
    """Set the flag; answer its generation if the zone's workflow is still to be told.

    Two bits, so that a crash between the flag and the signal is made good by whoever comes next; a generation, so that
    who was slow to write down a signal does not write it down for the next flag.
    """
    await connection.execute(_ENSURE, {"zone": zone})
    generation: int | None = await connection.scalar(_SET_WAKE, {"zone": zone})
    return generation


async def wake_signalled(connection: AsyncConnection, zone: str, generation: int) -> None:
    """The zone's workflow was told; until its round begins nobody need tell it again."""
    await connection.execute(_SIGNALLED, {"zone": zone, "generation": generation})


async def clear_wake(connection: AsyncConnection, zone: str) -> None:
    """A round begins: what happens from now on is news again."""
    await connection.execute(_CLEAR_WAKE, {"zone": zone})


# --- knobs


@dataclass(frozen=True)
class ZoneSettings:
    """The knobs of a zone's dispatch; each round reads them."""

    batch_window_seconds: float = 2.0
    max_batch: int = 200
    parallel_rounds: int = 1
    top_candidates: int = 16
    accept_window_seconds: float = 0.0
    max_offers: int = 3
    mode: ZoneMode = ZoneMode.AUTO


_SETTINGS = text("""
    SELECT batch_window_seconds, max_batch, parallel_rounds, top_candidates, accept_window_seconds, max_offers, mode
    FROM zones WHERE zone = :zone
""")
_LOCK_SETTINGS = text(f"{_SETTINGS.text} FOR NO KEY UPDATE")
_SAVE = text("""
    UPDATE zones SET batch_window_seconds = :batch_window_seconds, max_batch = :max_batch,
        parallel_rounds = :parallel_rounds, top_candidates = :top_candidates,
        accept_window_seconds = :accept_window_seconds, max_offers = :max_offers, mode = :mode
    WHERE zone = :zone
""")


async def get_settings(connection: AsyncConnection, zone: str) -> ZoneSettings | None:
    """A zone's knobs; None for one that was never used."""
    row = (await connection.execute(_SETTINGS, {"zone": zone})).one_or_none()
    return _settings_of(row) if row is not None else None


def _settings_of(row: Row[Any]) -> ZoneSettings:
    return ZoneSettings(**{**row._mapping, "mode": ZoneMode(row.mode)})


async def change_settings(
    connection: AsyncConnection, zone: str, changes: Mapping[str, Any], *, actor: str, reason: str | None
) -> ZoneSettings:
    """Change some knobs, from the next round on; a zone not used before gets its row."""
    made = bool((await connection.execute(_ENSURE, {"zone": zone})).rowcount)
    before = dict((await connection.execute(_LOCK_SETTINGS, {"zone": zone})).one()._mapping)
    after = {**before, **changes}
    if after != before:
        await connection.execute(_SAVE, {"zone": zone, **after})
        await wake_if_waiting(connection, zone)
    known = None if made else before
    await record_action(connection, actor, "assignment.settings", f"zone:{zone}", reason, before=known, after=after)
    return ZoneSettings(**{**after, "mode": ZoneMode(after["mode"])})


_LIST = text("""
    SELECT z.zone, z.batch_window_seconds, z.max_batch, z.parallel_rounds, z.top_candidates, z.accept_window_seconds,
        z.max_offers, z.mode, COALESCE(d.waiting, 0) AS waiting, COALESCE(a.attention, 0) AS attention,
        COALESCE(c.free, 0) AS free
    FROM zones z
    LEFT JOIN (SELECT zone, count(*) AS waiting
        FROM deliveries WHERE status IN ('PENDING', 'OFFERED') GROUP BY zone) d ON d.zone = z.zone
    LEFT JOIN (SELECT zone, count(*) AS attention
        FROM deliveries WHERE attention IS NOT NULL OR status = 'NEEDS_ATTENTION' GROUP BY zone) a ON a.zone = z.zone
    LEFT JOIN (SELECT zone, count(*) AS free FROM couriers WHERE online AND load < capacity GROUP BY zone) c
        ON c.zone = z.zone
    WHERE z.zone > :after ORDER BY z.zone LIMIT :limit
""")


async def list_zones(connection: AsyncConnection, after: str, limit: int) -> Sequence[Row[Any]]:
    """A page of zones by name: their knobs, what waits for a courier there, and how many couriers are free."""
    return (await connection.execute(_LIST, {"after": after, "limit": limit})).all()


async def ask_for_round(connection: AsyncConnection, zone: str, *, actor: str, reason: str | None) -> None:
    """Have the zone's dispatch run a round now."""
    await write_events(connection, [zone_woken(zone)])
    await record_action(connection, actor, "assignment.run", f"zone:{zone}", reason, before=None, after=None)
