"""How many attempts to assign lost, to what; and, apart, those that came to nothing and lost to nobody."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.assignment.states import AssignmentSource, ConflictKind, NoConflict

_COUNT = text("""
    INSERT INTO conflict_counts (source, kind, bucket, zone, total) VALUES (:source, :kind, :bucket, :zone, :number)
    ON CONFLICT (source, kind, bucket, zone) DO UPDATE SET total = conflict_counts.total + excluded.total
""")
_BUCKETS = 16
NO_ZONE = ""
"""Of a delivery that is not there (any more)."""

Attempt = tuple[str, ConflictKind | NoConflict]
"""The zone of the delivery that was attempted, and what came of it."""


async def count_attempts(connection: AsyncConnection, source: AssignmentSource, attempts: Iterable[Attempt]) -> None:
    """Count attempts that came to nothing; at most one call a transaction, as late in it as can be.

    One of several buckets for all of them, and zones and kinds in order: losers neither queue for one row nor lock two
    of them crosswise.
    """
    bucket = random.randrange(_BUCKETS)
    for (zone, kind), number in sorted(Counter(attempts).items()):
        values = {"source": source, "kind": kind, "bucket": bucket, "zone": zone, "number": number}
        await connection.execute(_COUNT, values)
