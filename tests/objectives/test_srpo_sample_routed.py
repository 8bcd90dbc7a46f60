from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.srpo_sample_routed import sample_routed as oracle

from coterie.metrics import Collector, collect
from coterie.objectives import ratios, trust_regions
from coterie.objectives.losses import sample_routed
from coterie.policies.logprobs import score_shown
from coterie.recipe import resolve
from coterie.rollouts import Sampling
from coterie.wiring import argument

READS = ("logp", "logp_old", "advantages", "kl_shown", "entropy_shown", "correct", "groups", "mask")


def loss(t: dict[str, Any], **settings: Any) -> torch.Tensor:
    return sample_routed(*(t[name] for name in READS), **settings)


def untold(n: dict[str, Any], seed: int) -> dict[str, Any]:
    """Some rollouts have nobody to learn from."""
    alone = np.random.default_rng(seed).random(len(n["mask"])) < 0.3
    for name in ("kl_shown", "entropy_shown"):
        n[name] = np.where(alone[:, None] & n["mask"], np.nan, n[name])
    return n


@pytest.mark.oracle("srpo-sample-routed")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_value_and_gradient_are_the_oracles(kind: str, beta: float) -> None:
    for seed in range(2):
        n = untold(inputs.table(kind, seed), seed)
        value, *slopes = oracle(n, beta, 0.2, 0.28)
        t = inputs.tensors(n)
        leaves = [t[name].requires_grad_() for name in ("logp", "kl_shown")]
        out = loss(t, beta=beta)
        scale = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(out.detach().numpy(), value, rtol=1e-11, atol=1e-11 * scale)
        for got, want in zip(torch.autograd.grad(out.sum(), leaves), slopes, strict=True):
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-11, atol=1e-11 * scale)


def test_a_confidence_of_nothing_at_all_still_has_mean_1() -> None:
    n = inputs.table("random")
    n["correct"][:] = False
    n["entropy_shown"] += 1e5
    t = inputs.tensors(n)
    t["kl_shown"] = torch.ones_like(t["kl_shown"])
    out = loss(t)
    for g in t["groups"].unique():
        own = t["mask"] & (t["groups"] == g).unsqueeze(-1)
        assert float(out[own].mean()) == pytest.approx(1.0)


@pytest.mark.oracle("srpo-sample-routed")
def test_numbers_of_the_source() -> None:
    """Two rollouts of one token, a vocabulary of two, a uniform policy; shown the right one it has logits (2, 0)."""
    logits = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    tokens, mask, shown = torch.tensor([0, 0]), torch.ones(2, 1, dtype=torch.bool), torch.tensor([[2.0, 0.0]]).double()
    kl, entropy = score_shown(logits[1:], shown, lambda x: x, tokens[1:], Sampling(), 8)
    nothing = torch.full((1, 1), math.nan, dtype=torch.float64)
    logp = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1))
    value = sample_routed(
        logp, logp.detach(), torch.tensor([1.0, -1.0]).double(), torch.cat([nothing, kl.unsqueeze(-1)]),
        torch.cat([nothing, entropy.unsqueeze(-1)]), torch.tensor([True, False]), torch.tensor([0, 0]), mask,
    ).mean()  # fmt: skip
    value.backward()
    assert float(value.detach()) == pytest.approx(-0.28311, abs=1e-5)
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.25, 0.25], [-0.25, 0.25]]).double())


def test_metrics_and_gradcheck() -> None:
    t = inputs.tensors(untold(inputs.table("random", 3), 3))
    leaves = [t["logp"].clone().requires_grad_(), t["kl_shown"].clone().requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, y: loss(t | {"logp": x, "kl_shown": y}), leaves)
    with collect(seen := Collector(), t["mask"]):
        loss(t)
    routed = t["mask"] & ~t["correct"].unsqueeze(-1) & t["kl_shown"].isfinite()
    assert 0 < seen.means()["routed/share"] == pytest.approx(float(routed.sum() / t["mask"].sum()))
    assert seen.means()["routed/kl"] == pytest.approx(float(t["kl_shown"][routed].mean()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_extremes_are_finite(dtype: torch.dtype) -> None:
    for kind in ("empty_rows", "one_row", "huge_ratios"):
        t = inputs.tensors(inputs.table(kind), dtype)
        t = {k: inputs.garbage(k, v, t["mask"]) if k in ("kl_shown", "entropy_shown") else v for k, v in t.items()}
        t["logp"] = t["logp"].masked_fill(~t["mask"], -math.inf).requires_grad_()
        t["entropy_shown"] = t["entropy_shown"] * 1e3
        out = loss(t)
        out.sum().backward()
        assert out.dtype == dtype and out.isfinite().all() and t["logp"].grad.isfinite().all()


@pytest.mark.reduction("srpo-sample-routed")
@given(st.integers(0, 10_000), st.sampled_from(["right", "alone"]))
def test_without_anybody_to_learn_from_it_is_the_clipped_surrogate(seed: int, how: str) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    if how == "right":
        t["correct"] = torch.ones_like(t["correct"])
    else:
        t["kl_shown"] = torch.full_like(t["kl_shown"], math.nan)
    a = t["advantages"].unsqueeze(-1) * t["mask"]
    want = -trust_regions.ppo_clip(ratios.token(t["logp"], t["logp_old"], t["mask"]), a, eps_high=0.28)
    torch.testing.assert_close(loss(t), want)


@pytest.mark.reduction("srpo-sample-routed")
@given(st.integers(0, 10_000))
def test_all_wrong_and_beta_0_is_the_plain_kl(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    t["correct"] = torch.zeros_like(t["correct"])
    torch.testing.assert_close(loss(t, beta=0.0), torch.where(t["mask"], t["kl_shown"], 0.0))


def test_what_is_shown_is_the_pieces_setting() -> None:
    changed = "objective.loss.sample_routed.template='>{solution}>'"
    assert (
        argument(resolve(method="srpo-sample-routed", overrides=["task=sort", changed]), "kl_shown", 0)
        == ">{solution}>"
    )
