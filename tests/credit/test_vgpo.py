"""VGPO: values of steps against the oracle, its worked example, its reduction, and what previews really are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles import vgpo as oracle

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.credit.group_norm import group_norm
from coterie.credit.value_anchored import value_anchored
from coterie.errors import RecipeError
from coterie.policies.flow.steps import noise_levels
from coterie.recipe import resolve
from tests.e2e.conftest import DENOISES, TINY

COLUMNS = ("rewards", "preview_rewards", "groups", "mask")


@pytest.mark.oracle("vgpo")
@pytest.mark.parametrize("anchored", [None, 2])
@pytest.mark.parametrize("sign", [None, 1.0, -1.0])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_advantages_are_the_oracles(kind: str, sign: float | None, anchored: int | None) -> None:
    n = inputs.table(kind)
    for name in ("rewards", "preview_rewards"):
        n[name] = n[name] if sign is None else sign * np.abs(n[name])
    t = inputs.tensors(n)
    got = value_anchored(*(t[c] for c in COLUMNS), gamma=0.8, absolute=0.3, anchored=anchored)
    want = oracle.advantages(*(n[c].tolist() for c in COLUMNS), gamma=0.8, absolute=0.3, anchored=anchored)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.oracle("vgpo")
def test_the_worked_example() -> None:
    """Two rollouts of three steps, gamma .9, absolute part .1."""
    previews = torch.tensor([[0.2, 0.4, 0.8], [0.1, 0.1, 0.1]], dtype=torch.float64)
    np.testing.assert_allclose([oracle.returns(r, 0.9) for r in previews.tolist()],
                               [[1.208, 1.12, 0.8], [0.271, 0.19, 0.1]])  # fmt: skip
    weights = [oracle.omega(oracle.returns(r, 0.9)) for r in previews.tolist()]
    np.testing.assert_allclose(weights, [[1.1586, 1.0742, 0.7673], [1.4492, 1.016, 0.5348]], atol=6e-5)
    mask = torch.ones(2, 3, dtype=torch.bool)
    got = value_anchored(previews[:, -1], previews, torch.zeros(2, dtype=torch.long), mask)
    want = [[1.2982, 1.1942, 0.8284], [-1.4096, -0.9965, -0.5293]]
    np.testing.assert_allclose(got, want, atol=4e-4)  # where eps stands in the fraction


@pytest.mark.reduction("vgpo")
@given(seed=st.integers(0, 300))
def test_without_a_past_and_an_absolute_part_it_is_group_norm(seed: int) -> None:
    """gamma 0, absolute 0, and the same reward after every step."""
    t = inputs.tensors(inputs.table("random", seed))
    rewards, on = t["rewards"].abs() + 0.1, torch.ones_like(t["mask"])
    got = value_anchored(rewards, rewards.unsqueeze(-1).expand(on.shape), t["groups"], on, gamma=0.0, absolute=0.0)
    want = group_norm(rewards, t["groups"], ddof=0, eps=1e-4)
    torch.testing.assert_close(got, want.unsqueeze(-1).expand(on.shape))


def test_a_group_of_equals_keeps_the_absolute_part() -> None:
    same, mask = torch.full((4, 3), 0.5), torch.ones(4, 3, dtype=torch.bool)
    groups = torch.zeros(4, dtype=torch.long)
    assert (value_anchored(same[:, 0], same, groups, mask) > 0).all()
    assert (value_anchored(same[:, 0], same, groups, mask, absolute=0.0) == 0).all()
    first = value_anchored(same[:, 0], same, groups, mask, anchored=1)
    assert (first[:, 0] > 0).all() and (first[:, 1:] == 0).all()


def test_previews_are_the_straight_way_to_the_end() -> None:
    """By hand from the states: a step's reward is that of x' - sigma' v(x', sigma'), and the last one's is its own."""
    overrides = [*TINY, *DENOISES, "denoise.guidance=1.5", "denoise.shift=2.0", "warm_start.steps=5"]
    run = build(resolve(method="vgpo", overrides=overrides))
    batch = collect(run, 0, Clock())
    assert batch is not None and batch["mask"].all()
    states, levels, closeness = batch.media["states"], noise_levels(4, 2.0), run.rewards.functions[0].fn
    policy, spec = run.policy, batch.sampling.denoising
    for row, step in ((0, 0), (5, 2), (7, 1)):
        at = torch.tensor([step + 1])
        v = policy.velocity(states[row : row + 1, step + 1], batch.prompts, batch["groups"][row : row + 1], at, spec)
        clean = (states[row, step + 1] - levels[step + 1] * v[0].detach()).numpy()
        want = closeness(clean, batch.prompts[int(batch["groups"][row])].row)
        assert float(batch["preview_rewards"][row, step]) == pytest.approx(want, rel=1e-5)
    torch.testing.assert_close(batch["preview_rewards"][:, -1], batch["rewards"])
    ended = policy.previews(batch, torch.tensor([3]), torch.tensor([3]))  # behind the last step is the sample
    torch.testing.assert_close(ended[0], states[3, -1])


def test_a_judge_has_no_previews(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("def judge(prompts, first, second):\n    return [0.5] * len(first)\n")
    judge = f"rewards.pairwise.judge={tmp_path / 'judge.py'}:judge"
    with pytest.raises(RecipeError, match="a judge compares finished samples"):
        build(resolve(method="vgpo", overrides=[*TINY, *DENOISES, judge, "rewards.pairwise.scheme=win_rate"]))
