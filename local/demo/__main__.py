"""`python -m local.demo`: drives the shopping-basket trace through the running stack."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from local.announce import say, status
from local.demo.baskets import read_trace
from local.demo.client import GaveUp, Unexpected
from local.demo.report import failures, table
from local.demo.run import Options, run_demo
from local.errors import StackError
from local.running import running_stack
from settings import SettingsError

_DEFAULTS = Options()


def main(arguments: Sequence[str]) -> int:
    """Run the demo; answer the exit code. Raises StackError when no stack runs."""
    asked = _parse(arguments)
    stack = running_stack()
    say(f"{asked.baskets} baskets of the Complete Journey go to {stack.url}.")
    baskets = read_trace(asked.baskets, asked.seed)
    options = Options(seed=asked.seed, rate=asked.rate, couriers=asked.couriers, patience_seconds=asked.patience)
    outcome = asyncio.run(run_demo(stack.url, stack.tokens, baskets, options))
    status(table(outcome))
    broken = failures(outcome)
    for sentence in broken:
        say(f"NOT KEPT: {sentence}")
    if not broken:
        say("Every accepted order reached its end, every event arrived in order, every invariant holds.")
    return 1 if broken else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description="Drive real shopping baskets through the stack.")
    parser.add_argument("--baskets", type=int, default=500, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=_DEFAULTS.seed, help="which ones, and their fates (%(default)s)")
    parser.add_argument("--rate", type=float, default=_DEFAULTS.rate, help="orders a second (%(default)s)")
    parser.add_argument("--couriers", type=int, default=_DEFAULTS.couriers, help="in each of 4 zones (%(default)s)")
    parser.add_argument(
        "--patience", type=float, default=_DEFAULTS.patience_seconds, help="seconds for an order (%(default)s)"
    )
    asked = parser.parse_args(arguments)
    for name in ("baskets", "rate", "couriers", "patience"):
        if getattr(asked, name) <= 0:
            parser.error(f"--{name} must be above 0")
    return asked


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (StackError, SettingsError, GaveUp, Unexpected) as error:
        sys.exit(f"make demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
