"""Bulk operations on the real stack, whatever becomes of their worker."""

from __future__ import annotations

import signal
from pathlib import Path

from temporalio.client import Client

from local.temporal import EmbeddedTemporal
from tests.activities.lanes import stage_failed
from tests.houses import open_house
from tests.processes import worker_process
from tests.receivers import Receiver
from tests.waiting import eventually

REPLAYS = "/api/admin/ops/outbox/replays"


async def test_a_bulk_replay_whose_worker_is_killed_delivers_exactly_what_was_frozen(
    database_url: str, client: Client, installation: str, temporal: EmbeddedTemporal, tmp_path: Path, receiver: Receiver
) -> None:
    async with open_house(database_url, client, installation, worker=False) as house:
        await house.webhook("shop", receiver.url)
        frozen = await stage_failed(house, 300)
        asked = {"filter": {"sink": "shop"}, "action": "replay", "dryRun": False, "reason": "the shop mended it"}
        with worker_process(house.settings, temporal.address, tmp_path / "worker.log") as first:

            async def begun() -> str | None:
                answer = await house.call("POST", REPLAYS, asked)
                return str(answer.json()["operationId"]) if answer.status_code == 202 else None

            operation_id = await eventually(begun)
            later = await stage_failed(house, 10, "later")

            async def in_the_middle() -> bool:
                return bool((await house.get(f"{REPLAYS}/{operation_id}"))["done"] >= 40)

            await eventually(in_the_middle)
            first.send_signal(signal.SIGKILL)
            first.wait()
        done = (await house.get(f"{REPLAYS}/{operation_id}"))["done"]
        assert 40 <= done < 300
        with worker_process(house.settings, temporal.address, tmp_path / "worker.log"):

            async def all_arrived() -> bool:
                return len({each.headers["webhook-id"] for each in receiver.accepted}) >= 300

            await eventually(all_arrived, 60)

            async def over() -> bool:
                return bool((await house.get(f"{REPLAYS}/{operation_id}"))["status"] == "DONE")

            await eventually(over, 30)
        operation = await house.get(f"{REPLAYS}/{operation_id}")
        assert (operation["count"], operation["done"], operation["skipped"]) == (300, 300, 0)
        assert {each.headers["webhook-id"] for each in receiver.requests} == frozen
        assert later.isdisjoint(frozen)
        assert await house.sql("SELECT count(*) FROM outbox_failures WHERE status = 'FAILED'") == [(10,)]
        each_once = "SELECT count(*), count(DISTINCT target) FROM admin_actions WHERE action = 'outbox.replay'"
        assert await house.sql(each_once) == [(300, 300)]
