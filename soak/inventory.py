"""Sweep, reconcile and the drift view at work while many writers reserve, confirm, cancel and let expire.

`python -m soak.inventory --operations 20000 --writers 16 --seed 1`, on a throw-away PostgreSQL. Most products are left
alone by everybody but the writers: of them nothing may ever show. A few are edited by hand all the while, and mended.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.exc import IntegrityError
from temporalio.testing import ActivityEnvironment

from activities.inventory import InventoryActivities
from db import ops
from db.engine import Database, create_engine
from db.inventory import drift, holds
from db.inventory.products import StockBelowReserved
from db.migrations import migrate
from domain.ids import new_id
from domain.inventory import ReconcileProgress
from domain.order import OrderStatus
from tests.db.shops import Shop
from tests.servers import fresh_database, throw_away_postgres

_GRACE_SECONDS = 1
_HEALTHY = [f"sku-{number:02}" for number in range(20)]
_EDITED = [f"edited-{number}" for number in range(4)]
_STOCK = 30
_LOOK_SECONDS = 0.1

# What the writers do, and how often. A confirm or a cancel may well meet a hold that is overdue, or over.
_OPERATIONS = {"reserve": 40, "confirm": 20, "cancel": 14, "let expire": 14, "expire": 4, "extend": 4, "restock": 4}
_EDITS = (
    "reserved = GREATEST(reserved - 3, 0)",
    "reserved = LEAST(reserved + 3, stock)",
    "stock = stock + 5",
    "stock = GREATEST(stock - 5, reserved)",
    "stock = GREATEST(reserved - 1, 0), reserved = GREATEST(reserved - 1, 0)",
)


@dataclass
class Soak:
    """One run of so many operations by so many writers, and what was seen of it."""

    shop: Shop
    """Used by the writers alone: its pool is as large as they are many."""
    others: Database
    operations: int
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    _open: list[str] = field(default_factory=list)
    _started: int = 0
    _over: bool = False

    async def run(self, writers: int) -> float:
        """Run to the end and assert everything; answer the seconds that the writers took."""
        for sku in (*_HEALTHY, *_EDITED):
            await self.shop.put(sku, _STOCK)
        chores = [self._sweep, self._reconcile, self._correct_what_is_right, self._edit_by_hand, self._look]
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(self._again_and_again(chore)) for chore in chores]
            began = time.monotonic()
            await asyncio.gather(*(self._write() for _ in range(writers)))
            seconds = time.monotonic() - began
            self._over = True
            await asyncio.gather(*running)
        await self._settle()
        return seconds

    async def _again_and_again(self, chore: Callable[[], Awaitable[None]]) -> None:
        while not self._over:
            await chore()
            await asyncio.sleep(_LOOK_SECONDS)

    # --- the writers

    async def _write(self) -> None:
        while self._started < self.operations:
            self._started += 1
            (operation,) = self.chance.choices(list(_OPERATIONS), list(_OPERATIONS.values()))
            if operation == "restock":
                await self._restock(self.chance.choice(_HEALTHY))
            elif operation == "reserve" or not self._open:
                operation = "reserve"
                await self._reserve(f"o-{self._started}")
            else:
                await self._change(operation, self.chance.choice(self._open))
            self.done[operation] += 1

    async def _reserve(self, order_id: str) -> None:
        skus = self.chance.sample([*_HEALTHY, *_EDITED], self.chance.randint(1, 3))
        state = await self.shop.reserve(order_id, [(sku, self.chance.randint(1, 3)) for sku in skus])
        self.outcomes[state.stage] += 1
        if state.stage is OrderStatus.RESERVED:
            self._open.append(order_id)

    async def _change(self, operation: str, order_id: str) -> None:
        """Two writers may well choose one order: they race, each other and the sweep."""
        if operation == "let expire":
            await self.shop.overdue(order_id)  # the sweep finds it, or whoever wants something of it
            return
        state = await self.shop.do(operation, order_id)
        self.outcomes[state.refusal or f"{operation}: {state.stage}"] += 1
        kept = state.stage is OrderStatus.RESERVED or (
            state.stage is OrderStatus.CONFIRMED and self.chance.random() < 0.5  # some are cancelled afterwards
        )
        if not kept and order_id in self._open:
            self._open.remove(order_id)

    async def _restock(self, sku: str) -> None:
        try:
            await self.shop.put(sku, self.chance.randrange(_STOCK, 2 * _STOCK))
        except StockBelowReserved:
            self.outcomes["restock refused"] += 1

    # --- what runs beside them

    async def _sweep(self) -> None:
        sweep = InventoryActivities(self.others, sweep_grace_seconds=_GRACE_SECONDS).sweep_holds
        self.seen["swept orders"] += await ActivityEnvironment().run(sweep)
        self.seen["sweeps"] += 1

    async def _reconcile(self) -> None:
        reconcile = InventoryActivities(self.others, sweep_grace_seconds=_GRACE_SECONDS).reconcile
        operation_id, progress = await self._begin_reconciliation(), ReconcileProgress()
        while not progress.done:
            progress = await ActivityEnvironment().run(reconcile, operation_id, progress)
        self.seen["reconciliations"] += 1

    async def _begin_reconciliation(self) -> str:
        operation_id = new_id()
        await self.others.transact(
            lambda connection: drift.begin_reconciliation(
                connection, operation_id, dry_run=False, skus=None, actor="soak", reason="soak"
            )
        )
        return operation_id

    async def _correct_what_is_right(self) -> None:
        """Reconcile every healthy product as if it had been reported: under its lock there is nothing to correct."""
        operation_id = await self._begin_reconciliation()
        async with self.others.read() as connection:
            found = await drift.get_reconciliation(connection, operation_id)
        assert found is not None
        for sku in _HEALTHY:
            await self.others.transact(partial(drift.reconcile_product, reconciliation=found[0], sku=sku))
        async with self.others.read() as connection:
            found = await drift.get_reconciliation(connection, operation_id)
        assert found is not None
        assert found[1] == [], f"corrected what was right: {found[1]}"
        self.seen["recomputed under the lock"] += len(_HEALTHY)

    async def _edit_by_hand(self) -> None:
        shop = Shop(self.others)
        edit, sku = self.chance.choice(_EDITS), self.chance.choice(_EDITED)
        try:
            await shop.sql(f"UPDATE products SET {edit} WHERE sku = :sku", sku=sku)  # noqa: S608
        except IntegrityError:  # the hand is not quick enough for what others do to the row
            return
        self.seen["edits by hand"] += 1

    async def _look(self) -> None:
        """What operators see: drift and broken promises only where a hand was, and counters within their limits."""
        async with self.others.read() as connection:
            drifted = {row.sku for row in await drift.drifted_products(connection)}
            checks = await ops.check_invariants(connection)
            stuck = await holds.stuck_reservations(connection, _GRACE_SECONDS, None, 50)
        assert drifted <= set(_EDITED), f"false drift: {drifted - set(_EDITED)}"
        for check in checks:
            assert set(check.sample) <= set(_EDITED), check
        wrong = await Shop(self.others).sql("SELECT * FROM products WHERE NOT (0 <= reserved AND reserved <= stock)")
        assert wrong == []
        self.seen["looks at drift, invariants and counters"] += 1
        self.seen["of them with drift by hand"] += bool(drifted)
        self.seen["stuck holds shown"] += len(stuck)

    async def _settle(self) -> None:
        """What is overdue is swept, what was edited is set right; then every promise is kept, to the last unit."""
        await self._sweep()
        await self._reconcile()
        await self.shop.holds_together()
        corrected = await self.shop.sql("SELECT sku, count(*) FROM corrections WHERE applied GROUP BY sku")
        assert {sku for sku, _ in corrected} <= set(_EDITED)
        self.seen["corrections"] = sum(count for _, count in corrected)


async def soak(database_url: str, *, operations: int, writers: int, seed: int) -> tuple[Soak, float]:
    """Run on a migrated, empty database; answer the run and its seconds."""
    writing = Database(create_engine(database_url, pool_size=writers, name="soak-writers"))
    others = Database(create_engine(database_url, pool_size=8, name="soak-others"))
    try:
        run = Soak(Shop(writing), others, operations, random.Random(seed))
        seconds = await run.run(writers)
        run.seen["transactions run again"] = writing.retried + others.retried
        return run, seconds
    finally:
        await writing.close()
        await others.close()


async def main() -> None:
    """Run as the command line says, and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m soak.inventory", description=__doc__)
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with throw_away_postgres() as postgres:
        async with fresh_database(postgres, "soak") as url:
            await asyncio.to_thread(migrate, url, "soak")
            run, seconds = await soak(url, operations=asked.operations, writers=asked.writers, seed=asked.seed)
    total = run.done.total()
    print(f"{total:,} operations, {asked.writers} writers, seed {asked.seed}: {seconds:.0f} s, {total / seconds:.0f}/s")
    for counter in (run.done, run.outcomes, run.seen):
        print("".join(f"\n  {name:<45}{count:>8,}" for name, count in sorted(counter.items())))
    print(
        "\nDrift 0 at the end, none that is false meanwhile; 0 <= reserved <= stock in every look; the ledger is right."
    )


if __name__ == "__main__":
    asyncio.run(main())
