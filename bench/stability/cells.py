"""Playing a cell, and the record of those that were: bench/results/stability/cells.json."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.results import RESULTS, machine, versions
from bench.stability import BASE, UPDATES, WARM, WINDOW, Objective
from bench.stability.summary import rows

PATH = RESULTS / "stability" / "cells.json"
ENDS = {"entropy": "entropy/mean", "kl": "mismatch/k3", "grad_norm": "grad/norm"}
"""Figure of a cell -> metric, averaged over the last updates."""

Cell = dict[str, Any]


@contextmanager
def warm_models(seeds: Sequence[int]) -> Iterator[dict[int, Path]]:
    """The first weights of each seed, in a folder that is removed afterwards."""
    from coterie.api import start
    from coterie.recipe import resolve

    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for seed in seeds:
            recipe = resolve(overrides=[*BASE, *WARM, f"seed={seed}"])
            found[seed] = Path(folder) / f"model-{seed}"
            start(recipe, Path(folder) / f"warm-{seed}", quiet=True).policy.save(found[seed])
        yield found


def play(objective: Objective, late: int, seed: int, model: Path) -> Cell:
    """Train from a seed's first weights on batches that are `late` updates old."""
    from coterie.api import start
    from coterie.errors import RunError
    from coterie.recipe import resolve

    own = [f"model={model}", f"seed={seed}", f"steps={UPDATES + late}", f"update.staleness={late}"]
    recipe = resolve(method=objective.method, overrides=[*BASE, *own, *objective.overrides])
    began, broke = time.process_time(), None
    with tempfile.TemporaryDirectory() as folder:
        try:
            metrics = start(recipe, Path(folder) / "run", quiet=True).metrics
        except RunError as error:  # a loss or gradient that is not finite is a result
            from coterie.observe.metrics import MetricsLog
            from coterie.observe.run_dir import RunDir

            broke = str(error).splitlines()[0]
            metrics = MetricsLog(RunDir.open(Path(folder) / "run").metrics).read()
    trained = [row for row in metrics if row["step"] > late]
    end = trained[-WINDOW:]
    return {
        "objective": objective.label, "method": " ".join([objective.method, *objective.overrides]), "late": late,
        "seed": seed, "start": metrics[0]["eval/accuracy"],
        "accuracy": 0.0 if broke else metrics[-1]["eval/accuracy"],
        **{name: _mean(end, metric) for name, metric in ENDS.items()},
        "grad_norm_max": max((row["grad/norm"] for row in trained if "grad/norm" in row), default=0.0),
        "curve": [_mean(trained[i : i + WINDOW], "accuracy") for i in range(0, len(trained), WINDOW)],
        "broke": broke, "seconds": round(time.process_time() - began, 2),
    }  # fmt: skip


def _mean(rows: Sequence[dict[str, Any]], metric: str) -> float | None:
    values = [row[metric] for row in rows if metric in row]
    return round(statistics.fmean(values), 6) if values else None


@dataclass
class Record:
    """Cells by objective, lateness and seed; written after each, so that a stopped bench goes on where it was."""

    cells: list[Cell]

    @staticmethod
    def load() -> Record:
        return Record(json.loads(PATH.read_text(encoding="utf-8"))["cells"] if PATH.is_file() else [])

    def has(self, label: str, late: int, seed: int) -> bool:
        return any((c["objective"], c["late"], c["seed"]) == (label, late, seed) for c in self.cells)

    def forget(self, labels: Sequence[str]) -> None:
        self.cells = [c for c in self.cells if c["objective"] not in labels]

    def add(self, cell: Cell) -> None:
        self.cells.append(cell)
        self.write()

    def write(self) -> None:
        self.cells.sort(key=lambda c: (c["objective"], c["late"], c["seed"]))
        body = {
            "setting": [*BASE, f"updates={UPDATES}"], "first_weights": list(WARM),
            "command": "python -m bench.stability", "machine": machine(), "versions": versions(),
            "table": rows(self.cells),
        }  # fmt: skip
        head = json.dumps(body, indent=1, ensure_ascii=False)[:-2]
        lines = ",\n  ".join(json.dumps(c, ensure_ascii=False) for c in self.cells)
        PATH.parent.mkdir(parents=True, exist_ok=True)
        PATH.with_suffix(".tmp").write_text(f'{head},\n "cells": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
        PATH.with_suffix(".tmp").replace(PATH)
