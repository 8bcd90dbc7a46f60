"""The picture of unmasked canvases: who has one, what is drawn in it, and that the report shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from coterie import api
from coterie.build import build
from coterie.observe import canvases, samples
from coterie.recipe import resolve
from coterie.rollouts import Prompt, Rollouts
from tests.e2e.conftest import TINY

MASKED = [*TINY, "model.kind=masked_diffusion", "unmask.steps=2"]


def figure(passes: list[list[int]], texts: list[list[str | None]], right: list[bool], each: int) -> Any:
    rows = len(passes)
    groups = torch.arange(rows) // each
    made = Rollouts([Prompt((1,))] * (rows // each), {"groups": groups}, media={"unmasked": torch.tensor(passes)})
    return canvases.draw(made, right, [f"p{g}" for g in range(rows // each)], texts, each)


def test_later_places_are_darker_and_wrong_rows_framed() -> None:
    drawn = figure([[0, 2, 1, -1], [0, 0, 1, 1]], [["a", "$b", "longer than that", None], ["a"] * 4], [True, False], 2)
    axes = drawn.axes[0]
    written = [t.get_text() for t in axes.texts]
    assert written[0] == "p0" and written[1:4] == ["a", r"\$b", "longe…"]
    boxes = [p for p in axes.patches if p.get_fill()]
    assert len(boxes) == 8
    light = [sum(b.get_facecolor()[:3]) for b in boxes[:4]]
    assert light[0] > light[2] > light[1] and light[3] == 3.0  # passes 0, 1 and 2, and a place that stays masked
    frames = [p for p in axes.patches if not p.get_fill()]
    assert [f.get_linewidth() == 2.0 for f in frames] == [False, True]
    drawn.canvas.draw()  # a dollar sign begins no formula


def test_a_wide_canvas_is_cut() -> None:
    drawn = figure([[0] * 100], [["x"] * 100], [True], 1)
    assert len([p for p in drawn.axes[0].patches if p.get_fill()]) == canvases.PLACES


def test_a_causal_policy_has_no_picture(tmp_path: Path) -> None:
    assert not samples.pictured(build(resolve(overrides=TINY)))
    assert samples.pictured(build(resolve(overrides=MASKED)))


@pytest.mark.parametrize("width", [4, 12])
def test_the_report_shows_canvases_before_and_after(width: int, tmp_path: Path) -> None:
    learns = ["task.dense=true", "optimizer.lr=0.1", f"rollout.max_tokens={width}"]
    result = api.start(resolve(overrides=[*MASKED, *learns]), tmp_path / "run", quiet=True)
    files = sorted((result.path / "samples").iterdir())
    assert [f.name for f in files] == ["step-000000.png", "step-000002.png"]
    assert files[0].read_bytes() != files[1].read_bytes()
    assert "samples of step-000000" in (result.path / "report.html").read_text(encoding="utf-8")
