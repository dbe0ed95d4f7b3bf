"""Starting a process again after it died, with a growing pause in between."""

from __future__ import annotations

from local.errors import StackError
from local.processes import Process

CONFIGURATION_ERROR = 78
"""Exit code (`EX_CONFIG`) of a child that no restart can help."""

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
_HEALTHY_SECONDS = 60.0


class Restarter:
    """Keeps one process running."""

    def __init__(self, process: Process, now: float) -> None:
        """`process` was started at `now`, in seconds of a clock that only runs forward; so in every call below."""
        self.process = process
        self._pause = _FIRST_PAUSE_SECONDS
        self._started_at = now
        self._restart_at: float | None = None

    def look(self, now: float) -> str | None:
        """Start the process again if that is due; returns a sentence whenever something happened.

        Raises `StackError` if it ended for a reason that a restart does not cure.
        """
        if self._restart_at is not None:
            return self._restart(now) if now >= self._restart_at else None
        if self.process.running:
            return None
        return self._ended(now)

    def _ended(self, now: float) -> str:
        code = self.process.exit_code
        if code == CONFIGURATION_ERROR:
            raise StackError(f"{self.process.name} cannot run as configured: {self.process.last_words()}")
        if now - self._started_at > _HEALTHY_SECONDS:
            self._pause = _FIRST_PAUSE_SECONDS
        pause = self._pause
        self._pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        self._restart_at = now + pause
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return f"{self.process.name} {how}; starting it again in {pause:g} s. Its log: {self.process.log}"

    def _restart(self, now: float) -> str:
        # What it may have left in its process group would compete with its successor.
        self.process.kill()
        self.process.start()
        self._started_at = now
        self._restart_at = None
        return f"{self.process.name} runs again (process {self.process.pid})."
