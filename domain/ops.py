"""The jobs that watch over the house, snapshots of it, and what a statement may say of itself."""

from __future__ import annotations

import re
from enum import StrEnum


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
