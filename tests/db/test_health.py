"""What PostgreSQL says of its sessions."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db import health, ops
from tests.db.shops import Shop


async def test_a_transaction_younger_than_the_one_that_looks_is_not_of_negative_age(shop: Shop) -> None:
    async with shop.database.read() as looking:
        await looking.execute(text("SELECT age(CAST('3' AS xid))"))  # from here PostgreSQL counts its ages

        async def while_another_writes(younger: AsyncConnection) -> None:
            pid = await younger.scalar(text("SELECT pg_backend_pid() FROM pg_current_xact_id()"))
            oldest = (await health.read_transactions(looking)).oldest_xmin
            assert oldest is not None
            assert oldest.pid == pid
            assert oldest.age >= 0
            assert oldest.seconds >= 0
            assert (await ops.read_metrics(looking, 5)).values.oldest_xmin_age_seconds >= 0

        await shop.put("tea", 1)
        await shop.database.transact(while_another_writes)
