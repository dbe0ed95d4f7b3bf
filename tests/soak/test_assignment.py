"""A slice of `make soak`: assigners that race and are killed, and offers that expire in a whole house."""

from __future__ import annotations

from pathlib import Path

from soak.deadline import rush
from soak.dispatch import expiries
from soak.race import race
from tests.houses import House


async def test_racing_assigners_that_are_killed_lose_nothing_and_every_loser_counts_once(
    database_url: str, tmp_path: Path
) -> None:
    run = await race(database_url, tmp_path, deliveries=60, couriers=6, processes=1, kills=1, seed=1)
    assert len(run.killed) == 1
    assert run.answered.total() > 0
    assert run.seen["attempts counted apart"] > 0


async def test_offers_that_expire_are_made_to_others_and_an_accept_that_races_has_one_winner(house: House) -> None:
    seen = await expiries(house, deliveries=60, zones=2, a_second=60, window=1.0, seed=1)
    assert seen.accepted + seen.given_up == 60
    assert seen.given_up > 0


async def test_offers_that_end_at_one_instant_are_all_made_again_and_nobody_is_asked_twice(house: House) -> None:
    seen = await rush(house, "north", offers=150, seed=1, maxBatch=40, batchWindowSeconds=0.1)
    assert len(seen.delays) == 150
    assert min(seen.delays) > 0
