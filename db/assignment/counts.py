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
_BUCKETS = 16


async def count_attempts(
    connection: AsyncConnection, source: AssignmentSource, kinds: Iterable[ConflictKind | NoConflict]
) -> None:
    """Count attempts that came to nothing; at most one call a transaction, as late in it as can be.

    One of several buckets for all of them, and the kinds in order: losers neither queue for one row nor lock two of
    them crosswise.
    """
    bucket = random.randrange(_BUCKETS)
    for kind, number in sorted(Counter(kinds).items()):
        values = {"source": source, "kind": kind, "bucket": bucket, "number": number}
        await connection.execute(_COUNT, values)
