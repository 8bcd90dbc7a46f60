"""Reference answers beside rollouts: GRAO and DaGRPO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.anchors import grao as grao_oracle
from oracles.anchors import kept as kept_oracle

from coterie.api import start
from coterie.build import build
from coterie.credit import anchored_norm, group_norm
from coterie.errors import RecipeError
from coterie.metrics import Collector, collect
from coterie.objectives.aggregations import sequence
from coterie.objectives.losses import reinforce
from coterie.recipe import resolve
from coterie.reductions import masked_mean
from coterie.rollout.strategies.reference_answer import reference_answer
from coterie.rollouts import Sampling
from coterie.selection import indistinct
from tests.e2e.conftest import TINY

SETTINGS = {"beta": 0.7, "lam": 0.4, "cap": 2.5}


def update(t: dict[str, Any], a: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The loss of the recipe, and its gradient by each row's mean log-prob."""
    logp = t["logp"].clone().requires_grad_()
    value = reinforce(logp, t["logp_old"], a, t["mask"])
    loss = inputs.scalar(value, sequence(torch.ones_like(a), t["mask"], t["groups"], scope="group"))
    loss.backward()
    return float(loss.detach()), torch.where(t["mask"], logp.grad, 0.0).sum(-1)


@pytest.mark.oracle("grao")
@pytest.mark.parametrize("kind", [k for k in inputs.KINDS if k != "empty_rows"])
def test_grao_is_its_three_terms(kind: str) -> None:
    """One anchor a group, as the strategy makes them."""
    for seed in range(4):
        n = inputs.table(kind, seed)
        first = [list(n["groups"]).index(g) for g in n["groups"]]
        n["anchor"] = np.array(first) == np.arange(len(first))
        t = inputs.tensors(n)
        a = anchored_norm(t["rewards"], t["groups"], t["anchor"], **SETTINGS)
        means = masked_mean(t["logp"], t["mask"])
        want, slope = grao_oracle(means.tolist(), n["rewards"], n["groups"], n["anchor"], **SETTINGS)
        loss, gradient = update(t, a)
        assert loss == pytest.approx(want, rel=1e-7, abs=1e-7)
        np.testing.assert_allclose(gradient, slope, rtol=1e-7, atol=1e-7)


@pytest.mark.oracle("grao")
def test_numbers_of_the_source() -> None:
    t: dict[str, Any] = {"logp": torch.tensor([[-1.0], [-2.0], [-1.5]], dtype=torch.float64)}
    t |= {"logp_old": t["logp"], "mask": torch.ones(3, 1) > 0, "groups": torch.zeros(3).long()}
    rewards, anchor = torch.tensor([1.0, 0.0, 1.0]).double(), torch.tensor([False, False, True])
    with collect(seen := Collector()):
        a = anchored_norm(rewards, t["groups"], anchor)
    loss, gradient = update(t, a)
    assert loss == pytest.approx(-0.05)
    np.testing.assert_allclose(gradient, [-0.8, 0.8, -0.5], atol=1e-6)
    assert seen.means() == {"grao/flat_share": 0.0, "grao/anchor_advantage": pytest.approx(1.0)}


def test_where_all_rollouts_fail_the_answer_is_imitated_with_a_limit() -> None:
    rewards, anchor = torch.tensor([0.1, 0.1, 1.0, 0.1, 0.1, 0.1]), torch.tensor([0, 0, 1, 0, 0, 1]) > 0
    a = anchored_norm(rewards, torch.tensor([0, 0, 0, 1, 1, 1]), anchor, beta=0.5, cap=3.0)
    assert a.tolist() == [0, 0, pytest.approx(4.5), 0, 0, 0]
    assert not anchored_norm(rewards[:2], torch.zeros(2).long(), torch.ones(2) > 0).any()


@pytest.mark.reduction("grao")
@given(st.integers(0, 10_000), st.floats(0, 2))
def test_without_imitation_and_anchors_it_is_scaled_group_norm(seed: int, lam: float) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    got = anchored_norm(t["rewards"], t["groups"], torch.zeros_like(t["anchor"]), lam=lam)
    want = (1 + lam) * group_norm(t["rewards"], t["groups"], ddof=0, eps=1e-8)
    torch.testing.assert_close(got, want)


@pytest.mark.oracle("dagrpo")
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.6, 5.0])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_indistinct_against_the_oracle(kind: str, margin: float) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        columns = t["rewards"], t["correct"], t["groups"]
        plain = n["rewards"], n["correct"], n["groups"]
        got = indistinct(*columns, t["anchor"], margin=margin)
        assert got.tolist() == kept_oracle(*plain, n["anchor"], margin)
        assert indistinct(*columns, margin=margin).tolist() == kept_oracle(*plain, np.zeros(len(got)), margin)


@pytest.mark.oracle("dagrpo")
def test_numbers_of_dagrpo() -> None:
    s, groups = torch.tensor([0.9, 0.85, 0.1], dtype=torch.float64), torch.zeros(3).long()
    with collect(seen := Collector()):
        keep = indistinct(s, torch.tensor([True, False, False]), groups)
    assert keep.tolist() == [1, 0, 1] and seen.means() == {"dagrpo/indistinct_share": pytest.approx(1 / 3)}
    np.testing.assert_allclose(group_norm(s[keep > 0], groups[keep > 0]), [0.706982, -0.706982], atol=1e-6)


@pytest.mark.reduction("dagrpo")
@given(st.integers(0, 10_000))
def test_no_margin_and_no_anchors_keep_everything(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    assert indistinct(t["rewards"], t["correct"], t["groups"], margin=0.0).all()


def test_the_reference_answer_stands_last_in_each_group() -> None:
    run = build(resolve(method="grao", overrides=TINY))
    prompts, sampling = [run.prompt(i) for i in range(3)], Sampling(max_tokens=4)
    seeds = [[10 * i + k for k in range(2)] for i in range(3)]
    made = reference_answer(run.policy, prompts, seeds, sampling, True, run.task.reference)
    plain = run.policy.rollout(prompts, seeds, sampling, entropy=True)
    assert (
        made["anchor"].tolist() == [False, False, True] * 3 and made["groups"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    )
    anchors = made["anchor"].nonzero().squeeze(-1)
    assert [made.texts[i] for i in anchors] == [run.task.reference(p.row) for p in prompts]
    assert [made.texts[i] for i in (~made["anchor"]).nonzero().squeeze(-1)] == plain.texts
    assert made.sampled().texts == plain.texts and plain.sampled() is plain
    scored = run.policy.score(made, {"logp", "entropy"})
    assert torch.allclose(scored["logp"], made["logp_old"], atol=1e-5)
    assert torch.allclose(scored["entropy"], made["entropy_old"], atol=1e-5)
    ends = [int(made["tokens"][i][made["mask"][i]][-1]) for i in anchors]
    assert set(ends) == {run.policy.tokenizer.eos_token_id} and not made["truncated"][anchors].any()
    short = reference_answer(run.policy, prompts, seeds, Sampling(max_tokens=1), False, run.task.reference)
    assert short["truncated"][anchors].all() and (short["lengths"][anchors] == 1).all()
    with pytest.raises(RecipeError, match="no reference answers"):
        reference_answer(run.policy, prompts, seeds, sampling, True, None)


@pytest.mark.parametrize("method", ["grao", "dagrpo"])
def test_through_the_loop(method: str, tmp_path: Path) -> None:
    rows = start(resolve(method=method, overrides=[*TINY, "task.dense=true"]), tmp_path / "run", quiet=True).metrics[1:]
    if method == "grao":
        assert rows[0]["grao/anchor_advantage"] > 0
    else:
        assert rows[0]["dagrpo/anchored_share"] > 0
    assert rows[0]["reward/mean"] < 0.9 and rows[0]["accuracy"] < 0.25  # the references are not among them
