"""How a job's run is written down, whichever way it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from temporalio.exceptions import ApplicationError

from activities.jobs import job_run
from db.engine import Database, create_engine
from db.jobs import read_jobs
from domain.ops import Job


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database."""
    opened = Database(create_engine(database_url, name="test"))
    yield opened
    await opened.close()


async def written(database: Database) -> Any:
    """The one job's row."""
    async with database.read() as connection:
        [row] = await read_jobs(connection)
    return row


async def test_a_run_is_written_down_from_its_start_to_its_result(database: Database) -> None:
    async with job_run(database, Job.CROSS_CHECK) as run:
        begun = await written(database)
        assert (begun.job, begun.last_finished_at, begun.succeeded_total) == ("cross_check", None, 0)
        run.result = {"ordersRestarted": 2}
    ended = await written(database)
    assert (ended.last_result, ended.succeeded_total, ended.failed_total) == ({"ordersRestarted": 2}, 1, 0)
    assert ended.last_started_at == begun.last_started_at < ended.last_finished_at


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("somebody@example.com"), "ValueError"),
        (ApplicationError("above 20 nothing is ended", non_retryable=True), "above 20 nothing is ended"),
        (asyncio.CancelledError(), "CancelledError"),
    ],
)
async def test_an_error_is_written_down_without_values_and_goes_on(
    database: Database, error: BaseException, told: str
) -> None:
    async def fail() -> None:
        async with job_run(database, Job.SWEEP):
            raise error

    with pytest.raises(type(error)):
        await fail()
    row = await written(database)
    assert (row.last_error, row.failed_total, row.last_finished_at) == (told, 1, None)
    async with job_run(database, Job.SWEEP):
        pass
    again = await written(database)
    assert (again.last_error, again.last_error_at, again.succeeded_total) == (told, row.last_error_at, 1)
