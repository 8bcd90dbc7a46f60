"""`coterie demo`: the whole loop on a laptop, from random weights to a rising curve."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from coterie.api import start
from coterie.cli.output import console, print_result
from coterie.errors import RecipeError, did_you_mean
from coterie.recipe import resolve

RECIPES = Path(__file__).parents[1] / "recipes"
DEMOS = {
    "sort": "demo.yaml",
    "countdown": "countdown.yaml",
    "flow": "flow.yaml",
    "masked-diffusion": "masked-diffusion.yaml",
    "agent": "frozen-lake.yaml",
}
"""Name -> recipe."""


def run_demo(which: str, out: Path | None, seed: int, quiet: bool) -> None:
    """Warm start, GRPO, held-out accuracy on problems the model has never seen; then where everything is."""
    if which not in DEMOS:
        raise RecipeError(f"there is no demo '{which}'", hint=did_you_mean(which, DEMOS))
    began = time.perf_counter()
    result = start(resolve(file=RECIPES / DEMOS[which], overrides=[f"seed={seed}"]), out, quiet=quiet)
    print_result(result, False)
    if result.interrupted:
        raise typer.Exit(130)
    console.print(f"recipe      {result.path / 'recipe.yaml'}   ({time.perf_counter() - began:.0f} s in all)")
