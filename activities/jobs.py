"""Writing down how a job's run went, so that its health can be read while every worker is down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog
from temporalio.exceptions import ApplicationError

from db import jobs
from db.engine import DATABASE_ERRORS, Database, error_code
from domain.ops import Job

log = structlog.get_logger(__name__)


@dataclass
class JobRun:
    """One run of a job."""

    result: dict[str, Any] = field(default_factory=dict)
    """What it did, as health shows it (camelCase); set before the block ends."""


@asynccontextmanager
async def job_run(database: Database, job: Job) -> AsyncIterator[JobRun]:
    """Record the start, and the result or the error of the block.

    Of an ApplicationError the message is recorded, as Temporal does; of any other error its code only.
    """
    await database.transact(partial(jobs.job_started, job=job))
    run = JobRun()
    try:
        yield run
    except BaseException as error:  # a cancelled run did not get to its end either
        told = error.message if isinstance(error, ApplicationError) else error_code(error)
        try:
            await database.transact(partial(jobs.job_failed, job=job, error=told))
        except DATABASE_ERRORS as unrecorded:
            log.warning("a job's error was not recorded", job=job, error=told, because=error_code(unrecorded))
        raise
    await database.transact(partial(jobs.job_succeeded, job=job, result=run.result))
