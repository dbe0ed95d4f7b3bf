"""When each job ran last, how it ended, and what went wrong: what an operator would otherwise look for in logs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.ops import Job

_STARTED = text("""
    INSERT INTO job_runs (job, last_started_at) VALUES (:job, clock_timestamp())
    ON CONFLICT (job) DO UPDATE SET last_started_at = excluded.last_started_at
""")
_SUCCEEDED = text("""
    UPDATE job_runs SET last_finished_at = clock_timestamp(), last_result = CAST(:result AS jsonb),
        succeeded_total = succeeded_total + 1
    WHERE job = :job
""")
_FAILED = text("""
    UPDATE job_runs SET last_error = :error, last_error_at = clock_timestamp(), failed_total = failed_total + 1
    WHERE job = :job
""")
_READ = text("""
    SELECT *, CAST(extract(epoch FROM clock_timestamp() - last_started_at) AS float8) AS seconds_since_start
    FROM job_runs
""")


async def job_started(connection: AsyncConnection, job: Job) -> None:
    """The job begins to run."""
    await connection.execute(_STARTED, {"job": job})


async def job_succeeded(connection: AsyncConnection, job: Job, result: Mapping[str, Any]) -> None:
    """The job ran to its end; the last error stays, with its time."""
    await connection.execute(_SUCCEEDED, {"job": job, "result": json.dumps(result)})


async def job_failed(connection: AsyncConnection, job: Job, error: str) -> None:
    """The job did not get to its end. `error` holds no values: everybody who may see the house's health reads it."""
    await connection.execute(_FAILED, {"job": job, "error": error})


async def read_jobs(connection: AsyncConnection) -> Sequence[Row[Any]]:
    """The jobs that ever ran."""
    return (await connection.execute(_READ)).all()
