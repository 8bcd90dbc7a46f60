from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.ppo_clip import ppo_clip as ppo_clip_oracle
from oracles.rank_grpo import rank_norm as oracle
from oracles.rank_grpo import suffix_dcg, turn_ratio

from coterie.credit import group_norm, rank_norm
from coterie.errors import RecipeError
from coterie.metrics import Collector, collect
from coterie.objectives.aggregations import sequence as sequence_mean
from coterie.objectives.ratios import sequence, token, turn
from coterie.objectives.trust_regions import ppo_clip

COLUMNS = ("step_rewards", "turn", "mask", "truncated", "groups")


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.detach().double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


@pytest.mark.oracle("rank-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"gain": "own", "scale": "none"}, {"items": 2, "ddof": 0, "eps": 0.1}, {"items": 2, "count_bonus": 0.1}],
)
def test_rank_norm_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        near(rank_norm(*(t[c] for c in COLUMNS), **settings), oracle(*(n[c] for c in COLUMNS), **settings))


def lists(hits: list[list[float]], tokens: int = 2, truncated: bool = True) -> dict[str, torch.Tensor]:
    """A group of lists with the relevance of their items, each item some tokens long."""
    width = max(map(len, hits))
    steps = torch.tensor([[*h, *[0.0] * (width - len(h))] for h in hits], dtype=torch.float64)
    counts = torch.tensor([[len(h)] for h in hits])
    turns = torch.arange(width).repeat_interleave(tokens).expand(len(hits), -1)
    mask = turns < counts
    return {
        "step_rewards": steps,
        "turn": torch.where(mask, turns, -1),
        "mask": mask,
        "truncated": torch.full((len(hits),), truncated),
        "groups": torch.zeros(len(hits), dtype=torch.long),
    }


@pytest.mark.oracle("rank-grpo")
def test_numbers_of_the_source() -> None:
    assert suffix_dcg([1, 0, 1, 0]) == pytest.approx([1.5, 0.5, 0.5, 0])
    t = lists([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]], tokens=1)
    near(rank_norm(**t), oracle(*(t[c].numpy() for c in COLUMNS)))
    assert rank_norm(**t)[0, 0] == pytest.approx(0.75 / (1.5 / 2**0.5 + 1e-4))
    t = lists([[1.5, 0.5], [0.0, 0.0]], tokens=1)
    near(rank_norm(**t, gain="own"), [[0.70704, 0.706907], [-0.70704, -0.706907]], 1e-6)


def test_the_end_of_the_list_and_what_is_too_much_get_nothing() -> None:
    t = lists([[1.0, 0.0, 1.0], [0.0, 1.0]], truncated=False)
    a = rank_norm(**t, items=2)
    assert (a[0, 4:] == 0).all(), "the third item is one too many"
    assert (a[0, :4] != 0).all() and (a[1, :3] != 0).all()
    assert a[1, 3] == 0, "the token that ended the list"
    shorter = lists([[1.0, 0.0], [0.0, 1.0]], truncated=False)
    near(a[:, :3], rank_norm(**shorter)[:, :3].numpy())
    assert a[0, 3] == a[0, 2] and rank_norm(**shorter)[0, 3] == 0


def test_the_number_of_items_may_be_asked_for() -> None:
    t = lists([[1.0, 0.0, 1.0], [0.0, 1.0], [1.0]], tokens=1, truncated=False)
    plain, a = rank_norm(**t, items=2), rank_norm(**t, items=2, count_bonus=0.1)
    assert a[0].tolist() == [plain[0, 0], plain[0, 1], 0], "the end of a list that is too long"
    assert a[1].tolist() == [plain[1, 0], 0.1, 0] and a[2].tolist() == [-0.1, 0, 0]
    t["truncated"][:] = True
    assert rank_norm(**t, items=2, count_bonus=0.1)[0, 2] == -0.1
    with pytest.raises(RecipeError, match=r"how many items(.|\n)*items=20"):
        rank_norm(**t, count_bonus=0.1)


def test_a_rank_that_a_list_does_not_have_counts_as_nothing() -> None:
    a = rank_norm(**lists([[0.0, 1.0], [0.0]], tokens=1), gain="own", scale="none")
    assert a.tolist() == [[0.0, 0.5], [0.0, 0.0]]


@pytest.mark.oracle("rank-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_ratio_of_items_against_the_oracle(kind: str) -> None:
    n = inputs.table(kind, 1)
    t = inputs.tensors(n)
    logp = t["logp"].clone().requires_grad_()
    got = turn(logp, t["logp_old"], t["turn"], t["mask"])
    want, slope = turn_ratio(n["logp"], n["logp_old"], n["turn"], n["mask"])
    near(got, want, 1e-10)
    out = torch.from_numpy(np.random.default_rng(0).standard_normal(want.shape))
    (gradient,) = torch.autograd.grad((got * out * t["mask"]).sum(), logp)
    np.testing.assert_allclose(gradient.numpy(), np.einsum("bt,btu->bu", out.numpy(), slope), rtol=1e-9, atol=1e-9)


@pytest.mark.oracle("rank-grpo")
def test_the_loss_and_its_gradient_against_the_oracle() -> None:
    n = inputs.table("random", 2)
    t = inputs.tensors(n)
    a = oracle(*(n[c] for c in COLUMNS))
    value, slope = turn_ratio(n["logp"], n["logp_old"], n["turn"], n["mask"])
    want, gradient = np.zeros(value.shape), np.zeros(value.shape)
    for i, s in zip(*np.nonzero(n["mask"]), strict=True):
        want[i, s], by_ratio = ppo_clip_oracle(float(value[i, s]), float(a[i, s]), 0.2, 0.2)
        gradient[i] += by_ratio * slope[i, s]
    logp = t["logp"].clone().requires_grad_()
    got = ppo_clip(turn(logp, t["logp_old"], t["turn"], t["mask"]), rank_norm(*(t[c] for c in COLUMNS)))
    near(got[t["mask"]], want[n["mask"]], 1e-10)
    (by_logp,) = torch.autograd.grad((got * t["mask"]).sum(), logp)
    near(by_logp, gradient, 1e-10)


def objective_gradient(r: Any, logp: torch.Tensor, a: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    c = sequence_mean(torch.ones(len(mask), dtype=logp.dtype), mask, torch.arange(len(mask)))
    value = ppo_clip(r, a)
    total = (value * c.sum(-1)).sum() if value.dim() == 1 else (value * c).sum()
    return torch.autograd.grad(total, logp, retain_graph=True)[0]


@pytest.mark.reduction("rank-grpo")
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_one_item_that_is_the_whole_rollout_is_gspo(seed: int, n: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(6) < torch.randint(1, 7, (n, 1), generator=draw)
    old = -torch.rand(n, 6, generator=draw, dtype=torch.float64)
    logp = (old + 0.3 * torch.randn(n, 6, generator=draw, dtype=torch.float64)).requires_grad_()
    rewards = torch.rand(n, generator=draw, dtype=torch.float64)
    turns, groups = torch.where(mask, 0, -1), torch.zeros(n, dtype=torch.long)
    wide = rank_norm(rewards.unsqueeze(-1), turns, mask, torch.ones(n, dtype=torch.bool), groups)
    flat = group_norm(rewards, groups)
    near(wide, torch.where(mask, flat.unsqueeze(-1), 0.0).numpy())
    one, other = turn(logp, old, turns, mask), sequence(logp, old, mask)
    near(objective_gradient(one, logp, wide, mask), objective_gradient(other, logp, flat, mask).numpy())


@pytest.mark.reduction("rank-grpo")
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_items_of_one_token_that_are_worth_the_same_are_grpo(seed: int, n: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.ones(n, 4, dtype=torch.bool)
    rewards = torch.rand(n, generator=draw, dtype=torch.float64)
    turns, groups = torch.arange(4).expand(n, 4), torch.zeros(n, dtype=torch.long)
    steps = rewards.unsqueeze(-1).expand(n, 4)
    a = rank_norm(steps, turns, mask, torch.ones(n, dtype=torch.bool), groups, gain="own")
    near(a, group_norm(rewards, groups).unsqueeze(-1).expand(n, 4).numpy())
    logp, old = torch.randn(n, 4, generator=draw), torch.randn(n, 4, generator=draw)
    near(turn(logp, old, turns, mask), token(logp, old, mask).numpy(), 1e-6)


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        rank_norm(**lists([[1.0, 0.0, 1.0], [0.0]]))
    assert seen.means() == {"rank/items": 2.0, "rank/dcg": 0.75}
