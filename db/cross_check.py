"""What the rows say should live in Temporal, and what the last cross-check found amiss."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.order import OrderStatus

_PAGE = 1000
# In no order, so that the index by status finds them: by id, every order that is over is passed by.
_OPEN_ORDERS = text("SELECT order_id, status FROM orders WHERE status IN ('RESERVED', 'CONFIRMED')")
_STAGES = text("SELECT order_id, status FROM orders WHERE order_id = ANY(CAST(:order_ids AS text[]))")
_RETRYING = text("""
    SELECT position || '-' || endpoint_id AS message_id FROM outbox_failures WHERE workflow_started_at IS NOT NULL
""")
_FORGET_WORKFLOW = text("""
    UPDATE outbox_failures SET workflow_started_at = NULL
    WHERE workflow_started_at IS NOT NULL AND position || '-' || endpoint_id = ANY(CAST(:message_ids AS text[]))
""")
_WAITING_ZONES = text("""
    SELECT zone FROM deliveries WHERE status = 'PENDING' AND NOT pinned GROUP BY zone
    UNION SELECT zone FROM deliveries WHERE status = 'OFFERED' AND offer_expires_at < now() - interval '5 seconds'
    UNION SELECT zone FROM zones WHERE wake
""")
_RESET_WAKE = text("UPDATE zones SET wake_signalled = false WHERE zone = :zone")
_RUNNING_OPERATIONS = text("""
    SELECT 'reconcile' AS kind, operation_id FROM reconciliations WHERE status = 'RUNNING'
    UNION ALL SELECT 'snapshot', snapshot_id FROM snapshots WHERE status = 'RUNNING'
    UNION ALL SELECT 'outbox_replay', operation_id FROM outbox_replays WHERE status = 'RUNNING'
""")
_DATABASE_ID = text("SELECT CAST(database_id AS text) FROM installation")


async def open_orders(connection: AsyncConnection) -> AsyncIterator[tuple[str, OrderStatus]]:
    """Every order that something can still happen to, with its stage."""
    async with connection.stream(_OPEN_ORDERS) as rows:
        async for page in rows.partitions(_PAGE):
            for row in page:
                yield row.order_id, OrderStatus(row.status)


async def stages(connection: AsyncConnection, order_ids: Collection[str]) -> dict[str, OrderStatus]:
    """The stages of those of the orders that have a row."""
    rows = await connection.execute(_STAGES, {"order_ids": list(order_ids)})
    return {row.order_id: OrderStatus(row.status) for row in rows}


async def retrying_messages(connection: AsyncConnection) -> list[str]:
    """Ids of the messages that hold a place of a workflow of their own."""
    return [row.message_id for row in await connection.execute(_RETRYING)]


async def forget_failure_workflows(connection: AsyncConnection, message_ids: Sequence[str]) -> None:
    """Their workflows are gone, and their places free: where needed the relays start new ones within a second."""
    await connection.execute(_FORGET_WORKFLOW, {"message_ids": list(message_ids)})


async def waiting_zones(connection: AsyncConnection) -> list[str]:
    """Zones whose dispatch has something to do."""
    return [row.zone for row in await connection.execute(_WAITING_ZONES)]


async def reset_wake(connection: AsyncConnection, zone: str) -> None:
    """Whoever was told of the zone's wake flag is gone."""
    await connection.execute(_RESET_WAKE, {"zone": zone})


async def running_operations(connection: AsyncConnection) -> list[tuple[str, str]]:
    """Kind (`reconcile`, `snapshot` or `outbox_replay`) and id of what an admin asked for and is not done."""
    return [(row.kind, row.operation_id) for row in await connection.execute(_RUNNING_OPERATIONS)]


async def database_id(connection: AsyncConnection) -> str:
    """This database's own id: a new one cannot pass for the one that Temporal's workflows belong to."""
    found: str = (await connection.execute(_DATABASE_ID)).scalar_one()
    return found


# --- findings

_KEEP = text("""
    DELETE FROM disagreements WHERE NOT (kind || ':' || target) = ANY(CAST(:current AS text[]))
""")
_ADD = text("""
    INSERT INTO disagreements (kind, target)
    SELECT * FROM unnest(CAST(:kinds AS text[]), CAST(:targets AS text[]))
    ON CONFLICT (kind, target) DO UPDATE SET last_seen_at = now()
""")


_LASTING = text("""
    SELECT target FROM disagreements WHERE kind = :kind AND first_seen_at < now() - make_interval(secs => 60)
""")


async def lasting_disagreements(connection: AsyncConnection, kind: str) -> set[str]:
    """What a pass at least a minute ago, by the database's clock, saw already."""
    return {row.target for row in await connection.execute(_LASTING, {"kind": kind})}


@dataclass(frozen=True)
class Disagreement:
    """A row and a workflow that do not agree, and were not made to."""

    kind: str
    target: str


async def record_disagreements(connection: AsyncConnection, found: Collection[Disagreement]) -> None:
    """Keep what a pass left amiss, each since it was first seen."""
    await connection.execute(_KEEP, {"current": [f"{each.kind}:{each.target}" for each in found]})
    parameters: Mapping[str, list[str]] = {
        "kinds": [each.kind for each in found],
        "targets": [each.target for each in found],
    }
    await connection.execute(_ADD, parameters)
