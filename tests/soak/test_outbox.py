"""Slices of `make soak`: the outbox under faults. What they promise about time is measured there, not here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from temporalio.client import Client

from local.postgres import EmbeddedPostgres
from local.temporal import EmbeddedTemporal
from soak.outbox_down import DownRun
from soak.outbox_faults import FaultRun
from soak.outbox_poison import PoisonRun
from soak.outbox_relays import FreezeRun, history_run
from soak.outbox_stage import Stage, open_stage
from tests.servers import fresh_database


@pytest_asyncio.fixture
async def stage(
    database_url: str, client: Client, installation: str, temporal: EmbeddedTemporal, tmp_path: Path
) -> AsyncIterator[Stage]:
    """A house whose workers are processes to kill."""
    async with open_stage(database_url, client, temporal.address, installation, tmp_path / "worker.log") as opened:
        yield opened


@pytest_asyncio.fixture
async def second_stage(
    postgres: EmbeddedPostgres,
    template: str,
    client: Client,
    installation: str,
    temporal: EmbeddedTemporal,
    tmp_path: Path,
) -> AsyncIterator[Stage]:
    """Another one."""
    name = f"{installation}-2"
    async with (
        fresh_database(postgres, name, template) as url,
        open_stage(url, client, temporal.address, name, tmp_path / "worker-2.log") as opened,
    ):
        yield opened


async def test_relays_that_are_killed_or_frozen_and_receivers_that_fail_lose_repeat_and_disorder_nothing(
    stage: Stage, second_stage: Stage
) -> None:
    # Both wait for a relay's heartbeats to be missed, so they do it together. A stall would last as long again.
    killed = FaultRun(stage, events=400, orders=40, kills=1, seed=5, stalls=0.0, hurried=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(killed.run())
        group.create_task(FreezeRun(second_stage, events=400).run())
    assert stage.promises.broken == second_stage.promises.broken == []
    assert killed.seen["kills"] == 1
    assert killed.seen["replayed"] > 0


async def test_a_poisoned_message_parks_its_lane_and_one_that_always_gets_500_fails_alone(stage: Stage) -> None:
    await PoisonRun(stage, pairs=1, spell_seconds=1.0).run()
    assert stage.promises.broken == []


async def test_a_receiver_that_is_down_costs_no_attempt_and_is_not_run_over_at_its_return(stage: Stage) -> None:
    await DownRun(stage, pending=300, pairs=1, burst=50).run()
    assert stage.promises.broken == []


async def test_healthy_events_write_no_history(stage: Stage) -> None:
    await history_run(stage, 300)
    assert stage.promises.broken == []
