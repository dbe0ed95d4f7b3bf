"""A slice of `make soak`: sweep, reconcile and drift beside many writers."""

from __future__ import annotations

from soak.inventory import soak


async def test_nothing_drifts_and_no_drift_is_false_while_many_write_sweep_and_reconcile(database_url: str) -> None:
    run, _ = await soak(database_url, operations=1_500, writers=16, seed=1)
    assert run.done.total() == 1_500
    # It was worth it: each of them met the others.
    for name in ("swept orders", "corrections", "recomputed under the lock", "of them with drift by hand"):
        assert run.seen[name] > 0, name
