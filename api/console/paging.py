"""Pages of the console's lists."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from api.models import Page

OfZone = Annotated[str, Query(max_length=64)]
"""The zone that a list is narrowed to; empty: every zone."""


class ShortPage(Page):
    """As many rows as a screen shows; the cursor is the API's."""

    def __init__(self, cursor: Annotated[str | None, Query(max_length=512)] = None) -> None:
        super().__init__(25, cursor)
