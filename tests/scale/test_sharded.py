"""Weights, gradients and optimizer state spread over two processes train as one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_workers import ROUNDING, TINY, same, weights, workers

from coterie.api import resume, start
from coterie.errors import RecipeError
from coterie.recipe import resolve

SHARDED = [*workers(2), "scale.shard=true"]
HALF = "model={init: {layers: 2, width: 16, heads: 2, context: 32}, dtype: bfloat16}"
CHECKPOINTED = "model={init: {layers: 2, width: 16, heads: 2, context: 32}, gradient_checkpointing: true}"


@pytest.mark.parametrize(
    ("method", "more"),
    [
        # the smallest micro-batches: one process has more of them, and both must pass together
        ("grpo+kl", ["update.minibatches=2", "update.tokens_per_microbatch=24", "warm_start.steps=2", ROUNDING]),
        pytest.param(
            "dapo",
            [CHECKPOINTED, "scale.offload=true", "selection.filters.dynamic_sampling.metric=rewards"],
            marks=pytest.mark.cluster,
        ),
    ],
)
def test_as_one_process(method: str, more: list[str], tmp_path: Path) -> None:
    alone = [setting for setting in more if not setting.startswith("scale.")]
    one = start(resolve(method=method, overrides=[*TINY, *alone]), tmp_path / "one", quiet=True)
    several = start(resolve(method=method, overrides=[*TINY, *SHARDED, *more]), tmp_path / "several", quiet=True)
    same(one.path, several.path)


@pytest.mark.cluster
@pytest.mark.parametrize("model", [[], [HALF]])
def test_checkpoints_do_not_depend_on_it(model: list[str], tmp_path: Path) -> None:
    """Two processes with shares, then one alone, then two again: the run of one process."""
    tiny = [*TINY, *model, "evaluation.every=1", "warm_start.steps=2"]
    whole = start(resolve(overrides=[*tiny, "steps=3"]), tmp_path / "whole", quiet=True)
    cut = start(resolve(overrides=[*tiny, *SHARDED, "steps=1"]), tmp_path / "cut", quiet=True)
    resume(cut.path, steps=2, workers=1, quiet=True)
    resume(cut.path, steps=3, workers=2, quiet=True)
    if not model:
        same(whole.path, cut.path)
        return
    saved = [torch.load(r.path / "checkpoints/step-000003/state.pt")["optimizer"] for r in (whole, cut)]
    for mine, other in zip(*(s["masters"] for s in saved), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, rtol=0, atol=3e-3)  # 3 steps of Adam at 1e-3, gradients in bfloat16
    first, last = weights(cut.path, 0), weights(cut.path, 3)
    assert all(w.dtype == torch.bfloat16 for w in last.values())
    moved = max(float((first[k].float() - last[k].float()).abs().max()) for k in first)
    assert 0 < moved < 0.02  # and the warm start was not undone by the first step


def test_an_objective_that_shows_right_rollouts_is_refused() -> None:
    with pytest.raises(RecipeError, match="the objective reads 'entropy_shown'"):
        start(resolve(method="srpo-sample-routed", overrides=[*TINY, *SHARDED]))


def test_an_optimizer_of_whole_matrices_is_refused() -> None:
    with pytest.raises(RecipeError, match="looks at whole weights"):
        start(resolve(overrides=[*TINY[:8], "optimizer=cosmos", *SHARDED]))
    with pytest.raises(RecipeError, match=r"scale\.shard=true"):
        resolve(overrides=[*TINY, "scale.offload=true"])
