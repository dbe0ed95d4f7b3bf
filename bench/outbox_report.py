"""The figures of a run in one table, each beside its target."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure. `met` is None where there is no target."""

    what: str
    figure: str
    target: str = ""
    met: bool | None = None


@dataclass
class Report:
    """Rows in the order in which they were added."""

    rows: list[Row] = field(default_factory=list)

    def rate(self, what: str, rates: Sequence[float], cpu: Sequence[tuple[float, float]] = ()) -> None:
        """A median rate, with the lowest and the highest; and the median CPU microseconds an event, where known."""
        if not rates:
            return
        span = f"  ({min(rates):,.0f} to {max(rates):,.0f})" if len(rates) > 1 else ""
        self.rows.append(Row(what, f"{statistics.median(rates):,.0f}/s{span}"))
        if cpu:
            here, server = (statistics.median(each) for each in zip(*cpu, strict=True))
            self.rows.append(Row("  CPU an event: this process, PostgreSQL", f"{here:.1f} µs, {server:.1f} µs"))

    def ratio(self, what: str, above: Sequence[float], below: Sequence[float], at_least: float | None = None) -> None:
        """The median of the pairs' ratios; where there is a target, it is to be at least so much."""
        if above and below:
            ratio = statistics.median(one / other for one, other in zip(above, below, strict=True))
            if at_least is None:
                self.note(what, f"{ratio:.2f}")
            else:
                self.rows.append(Row(what, f"{ratio:.2f}", f"at least {at_least:g}", ratio >= at_least))

    def at_most(self, what: str, value: float, limit: float, unit: str = "") -> None:
        """A value that is to be at most so much."""
        self.rows.append(Row(what, f"{value:.3g}{unit}", f"at most {limit:g}{unit}", value <= limit))

    def note(self, what: str, figure: str) -> None:
        """A figure without a target."""
        self.rows.append(Row(what, figure))

    def print(self, title: str) -> None:
        """Print the table."""
        table = Table(title=title, title_justify="left")
        table.add_column("")
        table.add_column("figure", justify="right")
        table.add_column("target", justify="right")
        table.add_column("met")
        for row in self.rows:
            table.add_row(row.what, row.figure, row.target, "" if row.met is None else "yes" if row.met else "NO")
        Console(width=125).print(table)
