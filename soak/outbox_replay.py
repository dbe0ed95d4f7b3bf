"""A bulk replay of thousands of FAILED messages whose worker is killed with -9 in the middle, more than once."""

from __future__ import annotations

import random

from soak.outbox_faults import REPLAYS
from soak.outbox_stage import PATIENCE_SECONDS, Stage, kill
from tests.activities.lanes import stage_failed
from tests.receivers import Receiver
from tests.waiting import eventually

_LATER = 100


async def replay_run(stage: Stage, count: int, kills: int, seed: int) -> None:
    """Run it."""
    house, chance = stage.house, random.Random(seed)
    async with Receiver() as receiver:
        await stage.webhook("shop", receiver.url)
        frozen = await stage_failed(house, count)
        worker = stage.start_worker()
        asked = {"filter": {"sink": "shop"}, "action": "replay", "dryRun": False, "reason": "the shop mended it"}

        async def begun() -> str | None:
            answer = await house.call("POST", REPLAYS, asked)
            return str(answer.json()["operationId"]) if answer.status_code == 202 else None

        operation_id = await eventually(begun, PATIENCE_SECONDS)
        later = await stage_failed(house, _LATER, "later")
        killed_at = []
        for moment in sorted(chance.sample(range(count // 10, count * 9 // 10), kills)):

            async def so_far(moment: int = moment) -> bool:
                return bool((await house.get(f"{REPLAYS}/{operation_id}"))["done"] >= moment)

            await eventually(so_far, PATIENCE_SECONDS)
            kill(worker)
            killed_at.append((await house.get(f"{REPLAYS}/{operation_id}"))["done"])
            worker = stage.start_worker()

        async def over() -> bool:
            return bool((await house.get(f"{REPLAYS}/{operation_id}"))["status"] == "DONE")

        await eventually(over, PATIENCE_SECONDS)
        await stage.delivered(count)
        arrivals = [each.headers["webhook-id"] for each in receiver.requests]
    await _judge(stage, operation_id, frozen, later, arrivals, killed_at)


async def _judge(
    stage: Stage, operation_id: str | None, frozen: set[str], later: set[str], arrivals: list[str], killed_at: list[int]
) -> None:
    house, promises, count = stage.house, stage.promises, len(frozen)
    promises.measured(f"killed when {', '.join(f'{done:,}' for done in killed_at)} of {count:,} were done")
    operation = await house.get(f"{REPLAYS}/{operation_id}")
    figures = (operation["count"], operation["done"], operation["skipped"])
    promises.hold("a bulk replay does exactly what it froze", figures == (count, count, 0), f"{figures}")
    each_once = "SELECT count(*), count(DISTINCT target) FROM admin_actions WHERE action = 'outbox.replay'"
    [[audited, targets]] = await house.sql(each_once)
    marked = await house.sql("SELECT count(*) FROM outbox_replay_items WHERE outcome = 'done'")
    promises.hold(
        "each message once: one mark and one line of audit",
        audited == targets == marked[0][0] == count,
        f"{marked[0][0]:,} marks, {audited:,} audited, {targets:,} messages",
    )
    promises.hold(
        "the receiver gets each, and nothing else",
        set(arrivals) == frozen,
        f"{len(set(arrivals)):,} events in {len(arrivals):,} calls",
    )
    failed = await stage.count("outbox_failures", "status = 'FAILED'")
    promises.hold(
        "failures that came later stay as they are",
        failed == len(later) and later.isdisjoint(arrivals),
        f"{failed} of {len(later)}",
    )
