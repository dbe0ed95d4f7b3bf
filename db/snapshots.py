"""Snapshots of the house: asked for, captured once, never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.ops import record_action

_BEGIN = text("INSERT INTO snapshots (snapshot_id, reason) VALUES (:snapshot_id, :reason)")
_RUNNING = text("SELECT status = 'RUNNING' FROM snapshots WHERE snapshot_id = :snapshot_id")
_STORE = text("""
    UPDATE snapshots SET status = 'DONE', content = CAST(:content AS jsonb)
    WHERE snapshot_id = :snapshot_id AND status = 'RUNNING'
""")
_FAIL = text("UPDATE snapshots SET status = 'FAILED' WHERE snapshot_id = :snapshot_id AND status = 'RUNNING'")
_GET = text("SELECT * FROM snapshots WHERE snapshot_id = :snapshot_id")
_LIST = text("""
    SELECT snapshot_id, created_at, reason, status FROM snapshots
    WHERE CAST(:after_time AS timestamptz) IS NULL OR (created_at, snapshot_id) < (:after_time, :after_id)
    ORDER BY created_at DESC, snapshot_id DESC LIMIT :limit
""")
_BEFORE = text("""
    SELECT * FROM snapshots WHERE status = 'DONE' AND (created_at, snapshot_id) <
        (SELECT created_at, snapshot_id FROM snapshots WHERE snapshot_id = :snapshot_id)
    ORDER BY created_at DESC, snapshot_id DESC LIMIT 1
""")


async def begin_snapshot(connection: AsyncConnection, snapshot_id: str, *, actor: str, reason: str | None) -> None:
    """Write down what is asked for, and by whom, before it is started."""
    await connection.execute(_BEGIN, {"snapshot_id": snapshot_id, "reason": reason})
    await record_action(
        connection, actor, "snapshot.capture", f"snapshot:{snapshot_id}", reason, before=None, after=None
    )


async def is_running(connection: AsyncConnection, snapshot_id: str) -> bool:
    """Whether the snapshot is still to be captured."""
    return bool(await connection.scalar(_RUNNING, {"snapshot_id": snapshot_id}))


async def store_snapshot(connection: AsyncConnection, snapshot_id: str, content: Mapping[str, Any]) -> None:
    """Keep what was captured; what is kept already stays as it is."""
    await connection.execute(_STORE, {"snapshot_id": snapshot_id, "content": json.dumps(content)})


async def fail_snapshot(connection: AsyncConnection, snapshot_id: str) -> None:
    """It could not be started: ask for another one."""
    await connection.execute(_FAIL, {"snapshot_id": snapshot_id})


async def get_snapshot(connection: AsyncConnection, snapshot_id: str) -> Row[Any] | None:
    """One snapshot with its content, which is null unless it is DONE."""
    return (await connection.execute(_GET, {"snapshot_id": snapshot_id})).one_or_none()


async def snapshot_before(connection: AsyncConnection, snapshot_id: str) -> Row[Any] | None:
    """The last one that was captured before a snapshot, with its content."""
    return (await connection.execute(_BEFORE, {"snapshot_id": snapshot_id})).one_or_none()


async def list_snapshots(
    connection: AsyncConnection, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Row[Any]]:
    """A page of snapshots without their contents, newest first."""
    time, snapshot_id = after or (None, None)
    return (await connection.execute(_LIST, {"after_time": time, "after_id": snapshot_id, "limit": limit})).all()
