"""What operators look at first: did the jobs run, who is there, who waits for whom in the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio.client import Client

from domain.outbox import SHARDS
from local.ports import free_port
from local.postgres import SUPERUSER, EmbeddedPostgres
from tests.houses import House, open_house
from tests.waiting import eventually

HEALTH = "/api/admin/ops/health"


async def swept(house: House, runs: int) -> dict[str, Any]:
    """The sweeper's health, when so many of its runs ended well."""

    async def ended() -> dict[str, Any] | None:
        sweeper: dict[str, Any] = (await house.get(HEALTH))["sweeper"]
        return sweeper if sweeper["succeeded"] >= runs else None

    sweeper = await eventually(ended, 20)
    assert sweeper is not None
    return sweeper


async def overdue(house: House, key: str = "k-1") -> str:
    """An order whose hold ended an hour ago, as its workflow does not know."""
    await house.product("tea", 5)
    order_id = await house.reserved(key, {"tea": 1})
    await house.sql("UPDATE reservations SET expires_at = now() - interval '1 hour'")
    return order_id


async def test_the_last_sweep_is_shown_with_what_it_did(house: House) -> None:
    await overdue(house)
    assert (await house.call("POST", "/api/admin/ops/reservations/sweep")).status_code == 202
    sweeper = await swept(house, 1)
    assert (sweeper["lastResult"], sweeper["lastError"], sweeper["failed"]) == ({"overdueOrders": 1}, None, 0)
    assert sweeper["lastStartedAt"] < sweeper["lastFinishedAt"]
    assert (await house.get(HEALTH))["reconcile"]["lastStartedAt"] is None


async def test_a_sweep_that_fails_says_so_and_who_blocks_it_is_named(house: House) -> None:
    order_id = await overdue(house)
    other = await overdue(house, "k-other")

    async def hold(connection: AsyncConnection) -> dict[str, Any]:
        locked = text("SELECT pg_backend_pid() FROM orders WHERE order_id = :order_id FOR UPDATE")
        pid = await connection.scalar(locked, {"order_id": order_id})
        await house.call("POST", "/api/admin/ops/reservations/sweep")
        waiting = await eventually(lambda: _lock_wait(house))
        assert waiting is not None
        assert (waiting["state"], waiting["waitingSeconds"] >= 0) == ("active", True), waiting
        assert "FOR" in waiting["query"]
        [blocker] = waiting["blockers"]
        assert (blocker["pid"], blocker["applicationName"], blocker["state"]) == (pid, "test", "idle in transaction")
        assert blocker["query"].startswith("SELECT pg_backend_pid() FROM orders WHERE order_id = $1")
        assert blocker["transactionSeconds"] > 0

        async def failed() -> dict[str, Any] | None:
            sweeper: dict[str, Any] = (await house.get(HEALTH))["sweeper"]
            return sweeper if sweeper["failed"] else None

        sweeper = await eventually(failed)
        assert sweeper is not None
        return sweeper

    failing = await house.database.transact(hold)
    told = f"1 overdue orders expired, 1 could not be had: {{'{order_id}': 'LockNotAvailableError 55P03'}}"
    assert (failing["lastError"], failing["succeeded"]) == (told, 0)
    await house.status_becomes(other, "EXPIRED")  # one that cannot be had keeps nobody waiting
    mended = await swept(house, 1)
    assert mended["lastResult"] == {"overdueOrders": 1}
    assert mended["lastErrorAt"] < mended["lastFinishedAt"]
    assert mended["lastError"] == told
    await house.status_becomes(order_id, "EXPIRED")


async def _lock_wait(house: House) -> dict[str, Any] | None:
    database = (await house.get(HEALTH))["database"]
    assert database["waiting"] >= len(database["lockWaits"])
    return database["lockWaits"][0] if database["lockWaits"] else None


async def test_a_reconciliation_is_shown_as_the_last_one(house: House) -> None:
    await house.product("tea", 5)
    await house.sql("UPDATE products SET reserved = 2")
    answer = await house.call("POST", "/api/admin/ops/inventory/reconcile", {"reason": "look"})

    async def done() -> dict[str, Any] | None:
        job: dict[str, Any] = (await house.get(HEALTH))["reconcile"]
        return job if job["succeeded"] else None

    job = await eventually(done)
    assert job is not None
    assert job["lastResult"] == {"operationId": answer.json()["operationId"], "driftedProducts": 1}


async def test_workers_and_the_owners_of_the_shards_are_shown(house: House) -> None:
    async def carried() -> dict[str, Any] | None:
        health: dict[str, Any] = await house.get(HEALTH)
        return health if all(relay["ownerAlive"] for relay in health["relays"]) else None

    health = await eventually(carried)
    assert health is not None
    [worker] = health["workers"]["items"]
    assert (health["workers"]["alive"], worker["alive"]) == (1, True)
    assert [(relay["shard"], relay["owner"]) for relay in health["relays"]] == [
        (shard, worker["workerId"]) for shard in range(SHARDS)
    ]


@asynccontextmanager
async def nobody_home(database_url: str, installation: str) -> AsyncIterator[House]:
    """A house without workers whose Temporal does not answer."""
    nowhere = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with open_house(database_url, nowhere, installation, worker=False) as house:
        yield house


async def test_a_long_transaction_is_seen_and_what_it_keeps_from_being_cleaned_up(
    database_url: str, installation: str
) -> None:
    async with nobody_home(database_url, installation) as house:

        async def linger(connection: AsyncConnection) -> None:
            # As by hand: a value in the statement itself, and no snapshot held between the statements.
            pid = await connection.scalar(
                text("SELECT pg_backend_pid() FROM pg_current_xact_id() WHERE 'a@b.example' <> ''")
            )
            for number in range(3):
                await house.product(f"sku-{number}", 1)
            database = (await house.get(HEALTH))["database"]
            longest = database["longestTransaction"]
            assert (longest["pid"], longest["applicationName"]) == (pid, "test")
            assert longest["transactionSeconds"] > 0
            assert longest["query"] == "SELECT pg_backend_pid() FROM pg_current_xact_id() WHERE … <> …"
            oldest = database["oldestXmin"]
            assert (oldest["holder"], oldest["pid"], oldest["name"]) == ("session", pid, "test")
            assert oldest["ageTransactions"] >= 3
            assert oldest["ageSeconds"] > 0

        await house.database.transact(linger)
        database = (await house.get(HEALTH))["database"]
        assert (database["longestTransaction"], database["waiting"], database["lockWaits"]) == (None, 0, [])


async def test_health_needs_neither_workers_nor_temporal_nor_tidy_rows(database_url: str, installation: str) -> None:
    async with nobody_home(database_url, installation) as house:
        assert (await house.get(HEALTH))["workers"] == {"alive": 0, "items": []}
        await house.sql("INSERT INTO workers (worker_id, heartbeat_at) VALUES ('gone', now() - interval '2 days')")
        await house.sql("UPDATE outbox_shards SET owner = 'gone' WHERE shard = 0")
        await house.sql("UPDATE outbox_shards SET owner = 'never seen' WHERE shard = 1")
        await house.sql("INSERT INTO job_runs (job) VALUES ('sweep'), ('a job of tomorrow')")
        health = await house.get(HEALTH)
        assert (health["workers"]["alive"], health["workers"]["items"][0]["workerId"]) == (0, "gone")
        assert [relay["owner"] for relay in health["relays"]] == ["gone", "never seen", None, None]
        assert not any(relay["ownerAlive"] for relay in health["relays"])
        assert health["sweeper"] == health["crossCheck"]  # neither ever ran
        assert health["sweeper"]["lastStartedAt"] is None


async def test_of_another_roles_session_its_pid_is_told_where_no_more_may_be_seen(
    postgres: EmbeddedPostgres, database_url: str, installation: str
) -> None:
    async with _plain_role(postgres, installation) as url, nobody_home(url, installation) as house:
        other = await asyncpg.connect(database_url, server_settings={"application_name": "another"})
        try:
            await house.product("tea", 5)
            async with other.transaction():
                pid = await other.fetchval("SELECT pg_backend_pid() FROM products FOR UPDATE")
                blocked = asyncio.create_task(house.sql("UPDATE products SET stock = 6"))
                waiting = await eventually(lambda: _lock_wait(house))
                assert waiting is not None
                [blocker] = waiting["blockers"]
                assert (blocker["pid"], blocker["applicationName"]) == (pid, "another")
                assert (blocker["state"], blocker["transactionSeconds"]) == (None, None)
                database = (await house.get(HEALTH))["database"]
                assert database["hiddenSessions"] == 2  # the other one, and the superuser who made the role
                assert database["longestTransaction"]["pid"] == waiting["pid"]
            await blocked
        finally:
            await other.close()


@asynccontextmanager
async def _plain_role(postgres: EmbeddedPostgres, database: str) -> AsyncIterator[str]:
    """The database's URL for a role that may read and write its tables, and nothing else."""
    role = f"{database}-plain"
    superuser = await asyncpg.connect(postgres.url(database, role=SUPERUSER))
    url = postgres.url(database, role=role)
    try:
        password = url.partition(f"{role}:")[2].partition("@")[0]
        await superuser.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD '{password}'")
        await superuser.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{role}"')
        await superuser.execute(f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO "{role}"')
        yield url
    finally:
        await superuser.execute(f'DROP OWNED BY "{role}"')
        await superuser.execute(f'DROP ROLE "{role}"')
        await superuser.close()


@pytest.mark.parametrize("role", ["client", "courier"])
async def test_health_is_the_admins_to_read(database_url: str, installation: str, role: str) -> None:
    async with nobody_home(database_url, installation) as house:
        assert (await house.call("GET", HEALTH, role=role)).status_code == 403
        assert (await house.http.get(HEALTH)).status_code == 401
