"""Held-out accuracy of the demos, before and after, over seeds.

Each is `coterie demo NAME --seed S` as it is: its recipe, one CPU thread, from random weights. Accuracy is that of
sampled completions, and of greedy ones where there are any.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.results import Figure, Findings

NAMES = ("sort", "flow", "masked-diffusion")
LEAST = 0.25
"""By how much the share that is right must rise with every seed."""


def run(options: Any) -> Findings:
    found, seeds = Findings(), options.runs_or(3, 1)
    for name in filter(options.wants, NAMES):
        made = [_run(name, seed) for seed in range(seeds)]
        found.detail[name] = made
        found.rows.append({
            "demo": name,
            "before %": _shares(made, "before"), "after %": _shares(made, "after"),
            "greedy before %": _shares(made, "greedy_before"), "greedy after %": _shares(made, "greedy_after"),
            "seconds": statistics.median(r["seconds"] for r in made),
        })  # fmt: skip
        rise = min(r["after"] - r["before"] for r in made)
        found.figures.append(Figure(f"least rise of held-out accuracy, demo {name}", rise, LEAST, seeds))
    found.notes.append("a number a seed; seconds are the median of whole runs, evaluations and pictures included")
    return found


def _run(name: str, seed: int) -> dict[str, Any]:
    """The held-out accuracy of one run after the warm start and at the end, its curve, and how long it took."""
    from coterie.api import start
    from coterie.cli.demo import DEMOS, RECIPES
    from coterie.recipe import resolve

    recipe = resolve(file=RECIPES / DEMOS[name], overrides=[f"seed={seed}"])
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = [r for r in start(recipe, Path(folder) / "run", quiet=True).metrics if "eval/accuracy" in r]
    return {
        "seed": seed, "seconds": time.perf_counter() - began,
        "before": rows[0]["eval/accuracy"], "after": rows[-1]["eval/accuracy"],
        "greedy_before": rows[0].get("eval/greedy"), "greedy_after": rows[-1].get("eval/greedy"),
        "curve": [[r["step"], r["eval/accuracy"]] for r in rows],
    }  # fmt: skip


def _shares(made: list[dict[str, Any]], key: str) -> str:
    return " / ".join("-" if r[key] is None else str(int(100 * r[key] + 0.5)) for r in made)
