"""Pages of the console's lists."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request

from api.models import Page

OfZone = Annotated[str, Query(max_length=64)]
"""The zone that a list is narrowed to; empty: every zone."""


class ShortPage(Page):
    """As many rows as a screen shows."""

    def __init__(self, request: Request, cursor: Annotated[str | None, Query(max_length=512)] = None) -> None:
        super().__init__(request, 25, cursor)
