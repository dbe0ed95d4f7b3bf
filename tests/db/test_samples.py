"""Samples of the metrics: one per moment, whoever takes it, for the last hour."""

from __future__ import annotations

import asyncio

from db.samples import KEPT_SECONDS, read_samples, sample_if_due
from tests.db.shops import Shop


async def test_many_processes_take_one_sample_between_them(shop: Shop) -> None:
    await shop.put("tea", 5)
    await shop.reserve("o-1", {"tea": 1})
    await shop.sql("UPDATE products SET reserved = 3")
    taken = await asyncio.gather(*(sample_if_due(shop.database, 5) for _ in range(6)))
    async with shop.database.read() as connection:
        rows = await read_samples(connection)
    assert sum(taken) == len(rows)
    assert len(rows) in (1, 2)  # 2: the bucket changed in between
    values = rows[-1].values
    assert (values["drift"], values["reserved"], values["stuck"], values["failed"]) == (1, 1, 0, 0)


async def test_what_is_past_the_last_hour_is_forgotten_as_new_samples_come(shop: Shop) -> None:
    await shop.sql(
        "INSERT INTO metric_samples (at, \"values\") SELECT now() - make_interval(secs => :seconds * n), '{}'"
        " FROM generate_series(1, 3) n",
        seconds=float(KEPT_SECONDS + 60),
    )
    assert await sample_if_due(shop.database, 5)
    assert await shop.value("SELECT count(*) FROM metric_samples") == 1
