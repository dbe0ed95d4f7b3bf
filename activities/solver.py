"""Processes to solve in: the solver holds the interpreter, and Temporal's deadlines leave a worker no such time."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import asdict

from temporalio.exceptions import ApplicationError

from domain.assignment.matching import FreeCourier, Pair, WaitingDelivery, match

_MOST_PROCESSES = 4


def decide(deliveries: Sequence[WaitingDelivery], couriers: Sequence[FreeCourier]) -> tuple[list[Pair], str]:
    """What a round decides, and its inputs as JSON: writing them out for a large batch takes its time as well."""
    inputs = {
        "deliveries": [asdict(delivery) for delivery in deliveries],
        "couriers": [asdict(courier) for courier in couriers],
    }
    return match(deliveries, couriers), json.dumps(inputs)


class Solver:
    """As many processes as there are cores, four at most; each is started when it is first needed."""

    def __init__(self) -> None:
        self._pool = _pool()

    def close(self) -> None:
        """End the processes; what they are solving is lost."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()

    async def decide(
        self, deliveries: Sequence[WaitingDelivery], couriers: Sequence[FreeCourier]
    ) -> tuple[list[Pair], str]:
        """`decide` in one of the processes; one that died costs the round, not the worker."""
        pool = self._pool
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, decide, deliveries, couriers)
        except BrokenExecutor as error:
            if self._pool is pool:  # rounds that ran at once notice it together
                self._pool = _pool()
            raise ApplicationError("the solver died", type="SolverDied") from error


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        max_workers=min(_MOST_PROCESSES, os.cpu_count() or 1),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_end_with_parent,
    )


def _end_with_parent() -> None:
    """A worker killed with -9 cannot end its helpers: they watch it."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
