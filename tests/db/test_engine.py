"""What becomes of a transaction's news, and of a statement whose connection broke."""

from __future__ import annotations

import asyncio

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import Database, announce, create_engine
from tests.waiting import eventually

CHANNEL = "waybill_test"


async def tell(connection: AsyncConnection) -> None:
    announce(connection, CHANNEL)
    await connection.execute(text("SELECT 1"))


async def say_nothing(connection: AsyncConnection) -> None:
    await connection.execute(text("SELECT 1"))


async def test_news_is_not_lost_to_whoever_waits_for_the_connection(database_url: str) -> None:
    heard: list[object] = []
    listener = Database(create_engine(database_url))
    listening = asyncio.create_task(listener.listen(CHANNEL, lambda: heard.append(None)))

    async def times(count: int) -> bool:
        return len(heard) == count

    await eventually(lambda: times(1))  # it listens
    database = Database(create_engine(database_url, pool_size=1, ping=False))
    await asyncio.gather(database.transact(tell), database.transact(say_nothing))
    await eventually(lambda: times(2))
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await database.close()
    await listener.close()


async def test_one_statement_is_not_lost_with_the_connection_that_broke_while_nobody_used_it(database_url: str) -> None:
    async def backend(connection: AsyncConnection) -> int:
        return int((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())

    database, admin = Database(create_engine(database_url, ping=False)), Database(create_engine(database_url))
    broken = await database.execute_once(backend)
    async with admin.read() as connection:
        await connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": broken})
    assert await database.execute_once(backend) != broken
    await database.close()
    await admin.close()
