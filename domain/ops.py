"""The jobs that watch over the house and pauses of them, snapshots of it, and what a statement may say of itself."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum

from domain.outbox import rfc3339


class Job(StrEnum):
    """A job whose last run and last error are kept."""

    SWEEP = "sweep"
    RECONCILE = "reconcile"
    CROSS_CHECK = "cross_check"
    RETENTION = "retention"


class SnapshotStatus(StrEnum):
    """FAILED: it could not be started; another one may be asked for."""

    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"


_UNTIL = ", until "


def pause_note(reason: str, until: datetime) -> str:
    """The note of a schedule's pause that the first cross-check after `until` takes back."""
    return reason + _UNTIL + rfc3339(until)


def pause_is_over(note: str | None, now: datetime) -> bool:
    """Whether a schedule's pause has lasted as long as its note says; one that says nothing lasts until it is ended."""
    _, _, until = (note or "").rpartition(_UNTIL)
    try:
        time = datetime.fromisoformat(until)
    except ValueError:
        return False
    return time.tzinfo is not None and time <= now


STATEMENT_LENGTH = 120

# What ends nowhere was cut off by PostgreSQL. Comments and quoted names are known too: a quote in one begins no string.
_TOKEN = re.compile(
    r"""
    (?P<comment> --[^\n]* | /\*.*?(?:\*/|\Z) )
    | (?P<value>
        [Ee]'(?:[^'\\]|\\.|'')*(?:'|\Z)
        | '(?:[^']|'')*(?:'|\Z)
        | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)
        | \d[\w.]*
    )
    | (?P<name> "(?:[^"]|"")*(?:"|\Z) | \$\d+ | [^\W\d][\w$]* )
    """,
    re.VERBOSE | re.DOTALL,
)


def statement_shape(statement: str) -> str:
    """The beginning of an SQL statement without its values: somebody's psql may hold what is nobody else's to read."""

    def shown(token: re.Match[str]) -> str:
        if token["name"] is not None:
            return token[0]
        return "…" if token["value"] is not None else " "

    return " ".join(_TOKEN.sub(shown, statement).split())[:STATEMENT_LENGTH]
