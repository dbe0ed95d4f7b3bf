"""Sessions of the console that were ended before their time; the others need no row."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_END = text("""
    INSERT INTO ended_sessions (session_id, expires_at) VALUES (:session_id, :expires_at) ON CONFLICT DO NOTHING
""")
# A day more than it takes: when a session is over is judged by the clock of whoever is asked.
_FORGET = text("DELETE FROM ended_sessions WHERE expires_at < now() - interval '1 day'")
_ENDED = text("SELECT EXISTS (SELECT FROM ended_sessions WHERE session_id = :session_id)")


async def end_session(connection: AsyncConnection, session_id: str, expires_at: datetime) -> None:
    """Let nobody in with the session any more; forget those that would be over by now anyway."""
    await connection.execute(_END, {"session_id": session_id, "expires_at": expires_at})
    await connection.execute(_FORGET)


async def is_ended(connection: AsyncConnection, session_id: str) -> bool:
    """Whether the session was ended before its time."""
    return bool(await connection.scalar(_ENDED, {"session_id": session_id}))
