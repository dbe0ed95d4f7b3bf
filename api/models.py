"""What requests share: text that can be stored, ids, pages; and how times and workflows are written in answers."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, TypeVar

from fastapi import Query, Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from api.auth import Role
from api.problems import invalid
from domain.outbox import rfc3339

Item = TypeVar("Item")


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("NUL characters cannot be stored")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("lone surrogates are not text") from None
    return text


_JSON_DEPTH = 32


def _storable_json(value: dict[str, Any]) -> dict[str, Any]:
    """Python reads more as JSON than PostgreSQL and a receiver do."""
    level: list[Any] = [value]
    for _ in range(_JSON_DEPTH):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += [*each, *each.values()]
            elif isinstance(each, list):
                inner += each
            elif isinstance(each, str):
                _storable(each)
            elif isinstance(each, float) and not math.isfinite(each):
                raise ValueError("a number is not finite")
            elif isinstance(each, int) and abs(each) >= 2**63:
                raise ValueError("a number is out of range")
        if not inner:
            return value
        level = inner
    raise ValueError(f"it is nested more than {_JSON_DEPTH} deep")


JsonObject = Annotated[dict[str, Any], AfterValidator(_storable_json)]
"""Any JSON object that can be stored and sent as it is."""
Text = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_storable)]
LongText = Annotated[str, StringConstraints(min_length=1, max_length=2000), AfterValidator(_storable)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
"""Zones, SKUs, webhooks: what goes into an address unescaped."""


Email = Annotated[
    str,
    StringConstraints(max_length=254, pattern=r"^[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+$"),
    AfterValidator(_storable),
]
"""What looks like an address; whether mail can be sent to it is asked where the order is new."""
Units = Annotated[int, Field(ge=1, le=1_000_000)]
Stock = Annotated[int, Field(ge=0, le=1_000_000_000)]
HoldSeconds = Annotated[int, Field(ge=1, le=86_400)]


class Body(BaseModel):
    """A request's body: camelCase, strict types, no unknown fields."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True, allow_inf_nan=False)


class Reasoned(Body):
    """The body of an admin's mutation whose reason is optional."""

    reason: LongText | None = None


def _unless_not_said_to_be_json(body: Any) -> Any:
    return None if isinstance(body, bytes) else body


OptionalReason = Annotated[Reasoned | None, BeforeValidator(_unless_not_said_to_be_json)]
"""The body of a mutation that needs none. One that is not said to be JSON, which the framework leaves as bytes, counts
as none: clients send an empty form where they send nothing."""


class NeedsReason(Body):
    """The body of an admin's mutation that cannot be undone."""

    reason: LongText


class Page:
    """`limit` and `cursor` of a list."""

    def __init__(
        self,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, Query(max_length=512)] = None,
    ) -> None:
        self.limit = limit
        self._cursor = cursor
        self._list: str = request.scope["path"]

    def after(self, *kinds: Callable[[Any], Any]) -> tuple[Any, ...] | None:
        """The values that the last page ended with, each made by its kind; None for the first page."""
        if self._cursor is None:
            return None
        try:
            of_list, *values = json.loads(base64.urlsafe_b64decode(self._cursor.encode()))
            if of_list != self._list or len(values) != len(kinds):
                raise ValueError("not a cursor of this list")
            return tuple(kind(_storable(str(value))) for kind, value in zip(kinds, values, strict=True))
        except (ValueError, TypeError):
            raise invalid("invalid-cursor", "The cursor is not one that this list gave out.") from None

    def answer(
        self, rows: Sequence[Item], show: Callable[[Item], dict[str, Any]], key: Callable[[Item], Sequence[Any]]
    ) -> dict[str, Any]:
        """The page; `rows` were read with a limit of one more than is shown, `key` is what `after` gets back."""
        shown = rows[: self.limit]
        more = len(rows) > self.limit
        return {"items": [show(row) for row in shown], "nextCursor": self._after(key(shown[-1])) if more else None}

    def _after(self, values: Sequence[Any]) -> str:
        texts = [value.isoformat() if isinstance(value, datetime) else str(value) for value in values]
        return base64.urlsafe_b64encode(json.dumps([self._list, *texts]).encode()).decode()


def big_integer(text: str) -> int:
    """An id that PostgreSQL can hold in a `bigint`. Raises ValueError."""
    return _integer_below(2**63, text)


def integer(text: str) -> int:
    """An id that PostgreSQL can hold in an `integer`. Raises ValueError."""
    return _integer_below(2**31, text)


def _integer_below(limit: int, text: str) -> int:
    value = int(text)
    if not 0 <= value < limit:
        raise ValueError("out of range")
    return value


def aware_time(text: str) -> datetime:
    """A time with its zone. Raises ValueError."""
    value = datetime.fromisoformat(text)
    if value.tzinfo is None or not 2000 <= value.year <= 3000:
        raise ValueError("no time that a row can have")
    return value


def time(value: datetime | None) -> str | None:
    """A time in an answer."""
    return rfc3339(value) if value is not None else None


def timeline(entries: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """A row's timeline in an answer: when, what and, where one is told, the reason."""
    return [{**entry, "at": rfc3339(datetime.fromisoformat(entry["at"]))} for entry in entries]


def actor(request: Request) -> str:
    """Who calls: the name under which the audit knows them."""
    role: Role = request.state.role
    return role.value


def admin(request: Request) -> str | None:
    """The admin who calls what clients or couriers do, and is audited for it; None for one of them."""
    return actor(request) if request.state.role is Role.ADMIN else None
