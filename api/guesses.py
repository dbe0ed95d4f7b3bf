"""Wrong tokens, counted."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

MANY_WRONG = 10
WINDOW_SECONDS = 60.0


class Guesses:
    """Counts the wrong tokens that come to the API and its console within a minute; each process for itself.

    Many of them are told to the log, once. That keeps nobody out: what makes guessing hopeless is a token's length.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong = 0
        self._ends_at = 0.0

    def wrong(self, address: str | None) -> None:
        """Count a wrong token, and whence it came."""
        now = self._clock()
        if now >= self._ends_at:
            self._wrong, self._ends_at = 0, now + WINDOW_SECONDS
        self._wrong += 1
        if self._wrong == MANY_WRONG:
            log.warning("many wrong tokens within a minute", wrong=self._wrong, last_address=address)
