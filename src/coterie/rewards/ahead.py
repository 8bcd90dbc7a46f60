"""Grading while others are still being generated, by functions that have processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from coterie.rewards.functions import WeightedReward


class Ahead:
    """Grades of single samples asked for before the batch is whole, by sample number.

    Only functions that grade one sample at a time, in another process, take part: there the time is really won, and
    what they answer cannot depend on the batch. One thread waits for them, so each process has one call at a time.
    """

    def __init__(self, functions: list[WeightedReward], attempt: Callable[[WeightedReward, str, Any], Any]) -> None:
        self.functions = [f for f in functions if f.per_sample and f.timeout is not None]
        self._attempt = attempt
        self._thread: ThreadPoolExecutor | None = None
        self._asked: dict[tuple[str, int], tuple[str, Future[Any]]] = {}

    def ask(self, number: int, completion: str, row: Mapping[str, Any]) -> None:
        """Have sample `number` of the batch to come graded."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "grading")
        for function in self.functions:
            future = self._thread.submit(self._attempt, function, completion, row)
            self._asked[function.name, number] = (completion, future)

    def collect(self) -> dict[tuple[str, int], tuple[str, Any]]:
        """Every answer asked for, by function and sample, with the completion it is for. Waits for those under way."""
        asked, self._asked = self._asked, {}
        return {key: (completion, future.result()) for key, (completion, future) in asked.items()}

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
