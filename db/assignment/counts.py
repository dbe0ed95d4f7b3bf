"""How many attempts to assign lost, to what; and, apart, those that came to nothing and lost to nobody."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.assignment.states import AssignmentSource, ConflictKind, NoConflict

_COUNT = text("""
    INSERT INTO conflict_counts (source, kind, bucket, total) VALUES (:source, :kind, :bucket, :number)
    ON CONFLICT (source, kind, bucket) DO UPDATE SET total = conflict_counts.total + excluded.total
""")
_COUNT_IN_ZONE = text("""
    INSERT INTO zone_conflict_counts (zone, source, kind, bucket, total)
    VALUES (:zone, :source, :kind, :bucket, :number)
    ON CONFLICT (zone, source, kind, bucket) DO UPDATE SET total = zone_conflict_counts.total + excluded.total
""")
_BUCKETS = 16
NO_ZONE = ""
"""Of a delivery that is not there (any more)."""

Attempt = tuple[str, ConflictKind | NoConflict]
"""The zone of the delivery that was attempted, and what came of it."""


async def count_attempts(connection: AsyncConnection, source: AssignmentSource, attempts: Iterable[Attempt]) -> None:
    """Count attempts that came to nothing; at most one call a transaction, as late in it as can be.

    One of several buckets for all of them, and kinds and zones in order: losers neither queue for one row nor lock two
    of them crosswise.
    """
    by_zone = Counter(attempts)
    common = {"source": source, "bucket": random.randrange(_BUCKETS)}
    for kind, number in sorted(Counter(kind for _, kind in by_zone.elements()).items()):
        await connection.execute(_COUNT, {**common, "kind": kind, "number": number})
    for (zone, kind), number in sorted(by_zone.items()):
        if zone != NO_ZONE and isinstance(kind, ConflictKind):
            await connection.execute(_COUNT_IN_ZONE, {**common, "zone": zone, "kind": kind, "number": number})
