"""What the loop does to the process it runs in."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from coterie.build import build
from coterie.loop import train
from coterie.recipe import resolve

SMALL = [
    "task={sort: {digits: 2, train: 16, held_out: 4}}", "model={init: {layers: 1, width: 16, heads: 2, context: 16}}",
    "draw.prompts=2", "rollout={group_size: 2, max_tokens: 3}", "evaluation.every=0", "threads=1",
]  # fmt: skip


class Watching:
    """Takes the reporter's place and looks at the collector after each step; breaks off after step `last`."""

    stopping = False

    def __init__(self, last: int) -> None:
        self.last, self.frozen = last, dict[int, int]()

    def note(self, text: str) -> None: ...

    def step(self, run: Any, batch: Any, clock: Any) -> None:
        self.frozen[run.step] = gc.get_freeze_count()
        if run.step == self.last:
            raise ZeroDivisionError

    def checkpoint(self, run: Any) -> None: ...


@pytest.mark.parametrize("last", [1, 9])
def test_the_collector_has_everything_back_when_training_ends_or_breaks_off(last: int) -> None:
    run, watching = build(resolve(method="grpo", overrides=[*SMALL, "steps=2"])), Watching(last)
    before = gc.get_freeze_count()
    try:
        train(run, watching)  # type: ignore[arg-type]
    except ZeroDivisionError:
        assert last == 1
    assert list(watching.frozen) == [0, 1, 2][: last + 1]
    assert all(count > before + 1000 for count in watching.frozen.values()) and gc.get_freeze_count() == 0
