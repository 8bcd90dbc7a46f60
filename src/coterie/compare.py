"""Methods side by side: the same task, model, settings and seeds for each; differences seed by seed, with intervals."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.api import Result, resume, start
from coterie.errors import RecipeError, RunError, did_you_mean
from coterie.observe.files import replacing
from coterie.observe.metrics import MetricsLog
from coterie.observe.run_dir import RunDir
from coterie.recipe import Recipe

HELD_OUT = "eval/accuracy"
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% quantiles of Student's t with 1, 2 … degrees of freedom."""


@dataclass(frozen=True)
class Side:
    """One method: the metric's value at the end of each seed's run, and its mean over the run; seeds in order."""

    method: str
    end: tuple[float, ...]
    over: tuple[float, ...]


def runs(recipes: Mapping[tuple[str, int], Recipe], out: Path, quiet: bool) -> dict[tuple[str, int], Result] | None:
    """Every run, by method and seed, in OUT/METHOD/seed-N. One that is there is taken as it is, or resumed where it was
    stopped. None where Ctrl-C stopped one of them.

    The seeds come one after another and the methods inside, so that what is wrong with any of them shows early.
    """
    done = {}
    for method, seed in sorted(recipes, key=lambda key: key[1]):
        result = _run(recipes[method, seed], out / _folder(method) / f"seed-{seed}", quiet)
        if result.interrupted:
            return None
        done[method, seed] = result
    return done


def _run(recipe: Recipe, path: Path, quiet: bool) -> Result:
    if not (path / "recipe.yaml").is_file():
        return start(recipe, path, quiet=quiet)
    directory = RunDir.open(path)
    if directory.recipe.read_text(encoding="utf-8") != recipe.to_yaml():
        raise RunError(
            "this run was made with another recipe", where=str(path), hint="compare in another folder: --out FOLDER"
        )
    if directory.status().get("state") != "finished":
        return resume(path, quiet=quiet)
    return Result(path, MetricsLog(directory.metrics).read(), False, None)


def _folder(method: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", method).strip("-.")


def folders(methods: Sequence[str]) -> None:
    """Raise RecipeError for a list of methods that cannot be compared."""
    if len(methods) < 2:
        raise RecipeError("one method has nothing to be compared with", hint="--methods grpo,dr-grpo")
    if len({_folder(m) for m in methods}) < len(methods):
        raise RecipeError(f"a method is named twice: {', '.join(methods)}", hint="name each once")


def measure(results: Mapping[tuple[str, int], Result], metric: str | None = None) -> tuple[str, list[Side]]:
    """The metric that is compared and each method's values. By default held-out accuracy, and the mean reward where no
    verifier says what is right. At the end is the last evaluation; of a metric of every step the last tenth.
    """
    rows = [row for result in results.values() for row in result.metrics]
    chosen = metric or (HELD_OUT if any(HELD_OUT in row for row in rows) else "reward/mean")
    known = {name for row in rows for name, value in row.items() if isinstance(value, int | float)}
    if chosen not in known:
        raise RecipeError(f"no run has the metric '{chosen}'", hint=did_you_mean(chosen, known))
    sides: dict[str, tuple[list[float], list[float]]] = {}
    for (method, _), result in results.items():
        values = [float(row[chosen]) for row in result.metrics if row["step"] > 0 and chosen in row]
        if not values:
            raise RunError(f"there is no '{chosen}' after step 0", where=str(result.path))
        last = values[-1:] if chosen.startswith("eval/") else values[-max(len(values) // 10, 1) :]
        end, over = sides.setdefault(method, ([], []))
        end.append(statistics.fmean(last))
        over.append(statistics.fmean(values))
    return chosen, [Side(method, tuple(end), tuple(over)) for method, (end, over) in sides.items()]


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Mean difference seed by seed and its 95% Student-t interval; without end for a single seed."""
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, n = statistics.fmean(gaps), len(gaps)
    half = math.inf if n < 2 else quantile(n - 1) * statistics.stdev(gaps) / math.sqrt(n)
    return mean, mean - half, mean + half


def quantile(degrees: int) -> float:
    """97.5% quantile of Student's t: a table, then its expansion around the normal's (within 0.001)."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    z, v = 1.959964, degrees
    second, third = 5 * z**5 + 16 * z**3 + 3 * z, 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z
    return z + (z**3 + z) / (4 * v) + second / (96 * v**2) + third / (384 * v**3)


def summary(metric: str, sides: Sequence[Side], seeds: Sequence[int]) -> dict[str, Any]:
    """Plain data of a comparison, each method against the first."""
    first = sides[0]
    rows = []
    for side in sides:
        row: dict[str, Any] = {"method": side.method}
        for name in ("end", "over"):
            values = getattr(side, name)
            row[name] = {"mean": statistics.fmean(values), "values": list(values)}
            if side is not first:
                mean, low, high = difference(values, getattr(first, name))
                row[name] |= {"difference": mean, "interval": [low, high] if math.isfinite(low) else None}
        rows.append(row)
    return {"metric": metric, "against": first.method, "seeds": list(seeds), "methods": rows}


def write(out: Path, found: Mapping[str, Any], results: Mapping[tuple[str, int], Result]) -> None:
    """comparison.json and comparison.png in the folder of the comparison."""
    with replacing(out / "comparison.json", "the comparison") as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    _draw(out / "comparison.png", found, results)


def _draw(path: Path, found: Mapping[str, Any], results: Mapping[tuple[str, int], Result]) -> None:
    """The metric over steps: a line for each method's mean, and a band from the worst seed to the best."""
    from coterie.observe import curves

    def lines(axes: Any, rows: Any) -> bool:
        for row, colour in zip(found["methods"], itertools.cycle(curves.COLOURS), strict=False):
            each = []
            for seed in found["seeds"]:
                places, values = curves.series(results[row["method"], seed].metrics, found["metric"])
                each.append(dict(zip(places.tolist(), values.tolist(), strict=True)))
            steps = sorted(set.intersection(*(set(e) for e in each)))
            table = [[e[step] for e in each] for step in steps]
            axes.fill_between(steps, [min(v) for v in table], [max(v) for v in table], color=colour, alpha=0.15)
            axes.plot(steps, [statistics.fmean(v) for v in table], color=colour, label=row["method"])
        axes.legend()
        return True

    curves.draw([], path, title=f"{found['metric']}, {len(found['seeds'])} seeds", panels=(lines,))
