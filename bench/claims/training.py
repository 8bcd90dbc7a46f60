"""The tiny language model, trained by the real loop on a built-in task: seconds a run on one thread."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.claims import Figures, Side, resolved

TINY = (
    "model={init: {layers: 1, width: 48, heads: 4, context: 32}}", "threads=1", "checkpoint.every=0",
    "log.rollouts_every=0", "evaluation.every=0", "evaluation.prompts=256", "evaluation.greedy=false",
)  # fmt: skip


def tiny(task: str, overrides: Sequence[str], figures: dict[str, str]) -> Callable[[Side, int], Figures]:
    """An experiment's setting: a run of a side with a seed. `figures`: name -> metric of the last step.

    The two sides of a seed begin with the same weights (the warm start included) and draw the same prompts.
    """

    def setting(side: Side, seed: int) -> Figures:
        from coterie.api import start

        recipe = resolved(side, seed, [f"task={task}", *TINY, *overrides])
        with tempfile.TemporaryDirectory() as folder:
            result = start(recipe, Path(folder) / "run", quiet=True)
        trained = [row for row in result.metrics if row["step"] > 0]
        out = {}
        for name, metric in figures.items():
            values = [row[metric] for row in trained if metric in row]
            out[name] = float(values[-1]) if metric.startswith("eval/") else sum(values) / len(values)
        return out

    return setting
