"""A worker's or the API's clock is an hour off: what counts is the database's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from temporalio.client import Client

from db.ops import workers_alive
from local.temporal import EmbeddedTemporal
from tests.houses import House, open_house
from tests.processes import api_process, worker_process
from tests.waiting import eventually

OFF = pytest.mark.parametrize("off", ["+1h", "-1h"], ids=["ahead", "behind"])


LIBRARY = "/usr/$LIB/faketime/libfaketimeMT.so.1"
"""What the `faketime` command preloads; the dynamic linker fills in `$LIB`."""


@contextmanager
def clock(off: str) -> Iterator[list[str]]:
    """What to put before a command for its clock to be off by so much; its timers run as ever.

    Without the `faketime` command: a kill would hit its process in place of ours, and it refuses to run where a killed
    process of the same id left its semaphore. The library does not mind; what it left is swept up here.
    """
    if shutil.which("faketime") is None:
        missing = "faketime is missing, which sets clocks off (Debian: apt-get install faketime)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    before = set(left_behind())
    yield ["env", f"LD_PRELOAD={LIBRARY}", f"FAKETIME={off}", "FAKETIME_DONT_FAKE_MONOTONIC=1"]
    for path in set(left_behind()) - before:
        path.unlink(missing_ok=True)


def left_behind() -> Iterator[Path]:
    """The semaphores and shared memory of processes with the library, running or killed."""
    return Path("/dev/shm").glob("*faketime_s*")  # noqa: S108 - where the library makes them


@OFF
async def test_a_workers_clock_that_is_off_changes_nothing(
    database_url: str, client: Client, installation: str, temporal: EmbeddedTemporal, tmp_path: Path, off: str
) -> None:
    async with open_house(database_url, client, installation, worker=False) as house:
        log = tmp_path / "worker.log"
        with (
            clock(off) as prefix,
            worker_process(house.settings, temporal.address, log, prefix=prefix) as process,
        ):
            await eventually(lambda: alive(house), 20)
            assert off_by_an_hour(process.pid)
            await holds_keep_to_the_databases_clock(house)


@OFF
async def test_the_apis_clock_that_is_off_changes_nothing(
    database_url: str, client: Client, installation: str, temporal: EmbeddedTemporal, tmp_path: Path, off: str
) -> None:
    async with open_house(database_url, client, installation) as house:
        log = tmp_path / "api.log"
        with (
            clock(off) as prefix,
            api_process(house.settings, temporal.address, log, prefix=prefix) as (process, url),
        ):
            async with httpx.AsyncClient(base_url=url, timeout=30) as http:
                other = replace(house, http=http)
                await eventually(lambda: ready(other), 20)
                assert off_by_an_hour(process.pid)
                await holds_keep_to_the_databases_clock(other)


def off_by_an_hour(pid: int) -> bool:
    """Whether the process has the library that sets its clock off."""
    return "libfaketime" in Path(f"/proc/{pid}/maps").read_text()


async def alive(house: House) -> int:
    """How many workers the API counts as alive."""
    async with house.database.read() as connection:
        return await workers_alive(connection)


async def ready(house: House) -> bool:
    """Whether the API answers."""
    try:
        return (await house.http.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def holds_keep_to_the_databases_clock(house: House) -> None:
    """Assert that a hold ends at its deadline and no sooner, and that what a client asks twice is answered once."""
    assert await alive(house) == 1
    await house.product("tea", 10)
    long = await house.reserved("k-long", {"tea": 2}, holdSeconds=900)
    paid = await house.reserved("k-paid", {"tea": 3}, holdSeconds=900)
    brief = await house.reserved("k-brief", {"tea": 1}, holdSeconds=2)
    again = await house.order("k-long", {"tea": 2}, holdSeconds=900)
    other = await house.order("k-long", {"tea": 1}, holdSeconds=900)
    assert (again.status_code, again.json()["orderId"], other.status_code) == (200, long, 422)

    for _ in range(2):
        confirmed = await house.call("POST", f"/api/orders/{paid}/confirm", role="client")
        assert (confirmed.status_code, confirmed.json()["status"]) == (200, "CONFIRMED")
    await house.status_becomes(brief, "EXPIRED")
    [[seconds]] = await house.sql(
        "SELECT CAST(extract(epoch FROM closed_at - expires_at) AS float8) FROM reservations WHERE order_id = :id",
        id=brief,
    )
    assert 0 <= seconds < 1.5

    assert (await house.get(f"/api/orders/{long}"))["status"] == "RESERVED"
    extended = await house.call("POST", f"/api/orders/{long}/extend", {"holdSeconds": 1200}, role="client")
    assert extended.status_code == 200
    [[left]] = await house.sql(
        "SELECT CAST(extract(epoch FROM expires_at - now()) AS float8) FROM reservations WHERE order_id = :id", id=long
    )
    assert 1190 < left <= 1200
    late_confirm = await house.call("POST", f"/api/orders/{brief}/confirm", role="client")
    assert (late_confirm.status_code, late_confirm.json()["type"]) == (409, "/problems/hold-expired")
    delivery = await house.get(f"/api/deliveries/{confirmed.json()['deliveryId']}")
    assert (delivery["status"], delivery["late"]) == ("PENDING", False)
    assert (await house.get("/api/admin/ops/reservations/stuck"))["items"] == []
    assert await house.stock("tea") == (7, 2)
    await house.invariants_hold()
