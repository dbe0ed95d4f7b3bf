"""Processes to solve in: the solver holds the interpreter, and Temporal's deadlines leave a worker no such time."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar

from temporalio.exceptions import ApplicationError

from domain.assignment.explain import Explanation, explain
from domain.assignment.policy import decide
from domain.assignment.view import Decision, RoundView

_MOST_PROCESSES = 4


Input = TypeVar("Input")
Output = TypeVar("Output")


def decide_round(view: RoundView) -> tuple[Decision, str]:
    """What a round decides, and its inputs as JSON: writing them out for a large batch takes its time as well."""
    return decide(view), json.dumps(asdict(view))


def explain_round(inputs: Mapping[str, Any]) -> Explanation | None:
    """Why a round decided as it did, from its stored inputs; None for one of before they were stored in full."""
    try:
        view = RoundView.from_json(inputs)
    except (KeyError, TypeError):
        return None
    return explain(view)


class Solver:
    """As many processes as there are cores, four at most; each is started when it is first needed, or warmed up."""

    def __init__(self) -> None:
        self._pool = _pool()

    def close(self) -> None:
        """End the processes; what they are solving is lost."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()

    async def warm_up(self) -> None:
        """Start a process before it is needed: that takes a second or two, which an offer past its deadline has not."""
        await self.run(decide_round, RoundView((), ()))

    async def run(self, work: Callable[[Input], Output], given: Input) -> Output:
        """Call `work` in one of the processes; one that died costs the call, not its caller's process."""
        pool = self._pool
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work, given)
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
