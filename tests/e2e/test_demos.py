"""The demos of text: their answers fit, and their recipes run whole. (What they reach is a benchmark.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.api import start
from coterie.build import build
from coterie.cli.demo import DEMOS, RECIPES
from coterie.recipe import resolve


@pytest.mark.parametrize("name", ["sort", "countdown"])
def test_a_demo_of_text_is_whole_and_its_answers_fit(name: str, tmp_path: Path) -> None:
    small = ["steps=1", "warm_start.steps=1", "draw.prompts=4", "evaluation={every: 0, prompts: 8, samples: 1}"]
    recipe = resolve(file=RECIPES / DEMOS[name], overrides=small)
    run, longest = build(recipe), recipe.settings.rollout.max_tokens
    assert run.task.reference is not None
    for row in (*run.task.train, *run.task.held_out):
        assert len(run.task.reference(row)) < longest  # characters are tokens, and EOS is one more
        assert 1 + len(row["prompt"]) + longest <= recipe.settings.model["init"]["context"]
    rows = start(recipe, tmp_path / "run", quiet=True).metrics
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [0, 1]
