"""What an event costs PostgreSQL: round trips on the wire, and row versions that vacuum has to take away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from bench.outbox_processes import helper
from bench.outbox_relay import drain_to_nowhere

# A deleted row is a dead tuple, and so is what an update leaves behind; the latter takes no vacuum where the new
# version is on the same page and no index changes (HOT): the next reader of the page prunes it.
_DEAD = """
    SELECT relname, n_tup_del + n_tup_upd - n_tup_hot_upd AS dead, n_tup_hot_upd AS pruned
    FROM pg_stat_user_tables WHERE n_tup_del + n_tup_upd > 0
"""


@dataclass(frozen=True)
class Cost:
    """Of one event, on average, while many wait."""

    round_trips: float
    kinds: Mapping[str, float]
    """Messages of the client by kind: BEGIN, COMMIT, prepare, execute, ping (an empty query)."""
    dead_tuples: float
    pruned_tuples: float
    """Dead ones of HOT updates."""


async def cost_of_an_event(url: str, count: int) -> Cost:
    """Carry so many waiting events to a sink that does nothing, and count instead of timing."""
    parts = urlsplit(url)
    async with helper("bench.outbox_wire", str(parts.hostname), str(parts.port)) as wire:
        counted = parts._replace(
            netloc=parts.netloc.replace(f":{parts.port}", f":{wire.port}"), query="sslmode=disable"
        )
        before = await _dead(url)
        await drain_to_nowhere(urlunsplit(counted), count, look_at=url)
        seen = await wire.ask()
    after = await _dead(url)
    return Cost(
        seen["round_trips"] / count,
        {kind: number / count for kind, number in seen["kinds"].items()},
        (after[0] - before[0]) / count,
        (after[1] - before[1]) / count,
    )


async def _dead(url: str) -> tuple[int, int]:
    """Dead and pruned tuples so far; sessions report when they end."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(_DEAD)
    finally:
        await connection.close()
    return sum(row["dead"] for row in rows), sum(row["pruned"] for row in rows)
