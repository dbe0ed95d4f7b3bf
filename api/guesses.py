"""How many wrong tokens an address may try."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

MOST_WRONG = 10
WINDOW_SECONDS = 60.0


class Throttle:
    """Counts wrong tokens by address, for a minute from the first one on; kept by each API process for itself.

    The right token is never asked about: whoever guesses from the admin's own address, or through the same proxy,
    cannot lock the admin out. It tells of guessing; what makes that hopeless is the token's length.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: Counter[str] = Counter()
        self._ends_at = 0.0

    def wrong(self, address: str) -> int | None:
        """Count a wrong token; answer the seconds to wait where it was one too many."""
        now = self._clock()
        if now >= self._ends_at:
            self._wrong.clear()
            self._ends_at = now + WINDOW_SECONDS
        self._wrong[address] += 1
        if self._wrong[address] <= MOST_WRONG:
            return None
        if self._wrong[address] == MOST_WRONG + 1:
            log.warning("many wrong admin tokens at the console", address=address)
        return math.ceil(self._ends_at - now)
