"""The raw limit: what any correct outbox must do for the same batches, in as many transactions, with bare asyncpg.

Claim (recorded, so that a crash leaves a trace; read together with the events), then settle behind the shard's fence:
delete, log as finished, count. No lanes, no judging of failures, no objects made of the rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import asyncpg

from bench.outbox_relay import Drained

_CLAIM = """
    WITH ready AS (
        SELECT position, event_position FROM outbox_messages
        WHERE shard = $1 AND endpoint_id = $2 ORDER BY position LIMIT $4
    ), claim AS (
        INSERT INTO outbox_claims (shard, endpoint_id, epoch, positions)
        SELECT $1, $2, $3, array_agg(position) FROM ready HAVING count(*) > 0
        ON CONFLICT (shard, endpoint_id) DO UPDATE SET epoch = excluded.epoch, positions = excluded.positions
    )
    SELECT ready.position, e.event_id, e.event_type, e.subject, e.lane, e.data, e.occurred_at
    FROM ready CROSS JOIN LATERAL (SELECT * FROM outbox_events WHERE position = ready.event_position) e
    ORDER BY ready.position
"""
_SETTLE = """
    WITH fence AS (
        UPDATE outbox_shards SET dispatched = dispatched + $4 WHERE shard = $1 AND epoch = $3 RETURNING shard
    ), gone AS (
        DELETE FROM outbox_messages m USING fence
        WHERE m.shard = fence.shard AND m.endpoint_id = $2 AND m.position = ANY($5::bigint[])
        RETURNING m.position
    )
    INSERT INTO outbox_finished (position, endpoint_id, status, duration_ms)
    SELECT position, $2, 'DELIVERED', 0 FROM gone
"""
# As the relays' connections are (see `db.engine`).
_SETTINGS = {"jit": "off", "timezone": "UTC"}


async def drain_raw(url: str, batches: Mapping[int, Sequence[int]], endpoint: str) -> Drained:
    """Carry what waits in the database in these batches of each shard, one connection a shard."""
    connections = {shard: await asyncpg.connect(url, server_settings=_SETTINGS) for shard in batches}
    try:
        began = time.perf_counter()
        await asyncio.gather(
            *(_drain_shard(connections[shard], shard, sizes, endpoint) for shard, sizes in batches.items())
        )
        seconds = time.perf_counter() - began
        left = await next(iter(connections.values())).fetchval("SELECT count(*) FROM outbox_messages")
    finally:
        for connection in connections.values():
            await connection.close()
    assert left == 0, "the raw limit carries everything too"
    return Drained(sum(map(sum, batches.values())), seconds)


async def _drain_shard(connection: asyncpg.Connection, shard: int, sizes: Sequence[int], endpoint: str) -> None:
    take = (
        "UPDATE outbox_shards SET epoch = epoch + 1, owner = 'raw', taken_at = now() WHERE shard = $1 RETURNING epoch"
    )
    endpoint_id = await connection.fetchval("SELECT endpoint_id FROM outbox_endpoints WHERE name = $1", endpoint)
    epoch = await connection.fetchval(take, shard)
    for size in sizes:
        claimed = await connection.fetch(_CLAIM, shard, endpoint_id, epoch, size)
        positions = [row["position"] for row in claimed]
        await connection.execute(_SETTLE, shard, endpoint_id, epoch, len(positions), positions)
