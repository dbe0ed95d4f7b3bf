"""What `make up` prints: sentences with a time, and a table of where everything is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table


def say(sentence: str) -> None:
    """Print a sentence with the local time in front."""
    _print(lambda: print(f"{datetime.now():%H:%M:%S} {sentence}", flush=True))


def status(rows: Sequence[tuple[str, str]]) -> None:
    """Print what is where: a table in a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        width = max(len(name) for name, _ in rows)
        _print(lambda: print("\n".join(f"{name:<{width}}  {value}" for name, value in rows), flush=True))
        return
    table = Table(show_header=False, title="Waybill")
    for name, value in rows:
        table.add_row(name, value)
    _print(lambda: Console(highlight=False).print(table))


def _print(write: Callable[[], None]) -> None:
    # The terminal may be gone, or the reader of a pipe; the stack does not end for that.
    with contextlib.suppress(OSError):
        write()
