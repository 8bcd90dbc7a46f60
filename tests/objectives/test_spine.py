from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.spine import band, top, vote

from coterie.api import start
from coterie.metrics import Collector, collect
from coterie.objectives import ratios, trust_regions
from coterie.objectives.aggregations import token
from coterie.objectives.terms import entropy_band
from coterie.recipe import resolve
from coterie.rewards.shaping import majority_vote
from coterie.selection import top_decisions
from tests.e2e.conftest import TINY


def I(*values: int) -> torch.Tensor:  # noqa: E743
    return torch.tensor(values)


@pytest.mark.oracle("spine")
@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_votes_against_the_oracle(kind: str, leave_out: bool) -> None:
    for seed in range(6):
        n = inputs.table(kind, seed)
        n["answers"] = n["answers"] % 3
        t = inputs.tensors(n)
        got = majority_vote(t["rewards"], t["answers"], t["groups"], leave_out=leave_out)
        assert got.tolist() == vote(n["answers"], n["groups"], leave_out)


def test_ties_have_no_direction_and_an_answer_given_once_never_wins() -> None:
    zeros, one = torch.zeros(4).double(), I(0, 0, 0, 0)
    assert majority_vote(zeros, I(5, 5, 7, 7), one).tolist() == [1, 1, 1, 1]
    assert majority_vote(zeros, I(5, 5, 7, 7), one, leave_out=True).tolist() == [0, 0, 0, 0]
    assert majority_vote(zeros, I(1, 2, 3, 4), one).tolist() == [0, 0, 0, 0]
    assert majority_vote(zeros, I(1, 1, 1, 4), one, leave_out=True).tolist() == [1, 1, 1, 0]
    with collect(seen := Collector()):
        majority_vote(zeros, I(1, 1, 1, 4), one, torch.tensor([True, False, True, True]))
    assert seen.means() == {"vote/share": 0.75, "vote/reward": 0.75, "vote/accuracy": pytest.approx(2 / 3)}


@pytest.mark.oracle("spine", "d3s")
@pytest.mark.parametrize("share", [0.0, 0.2, 0.45, 1.0])
@pytest.mark.parametrize("scope", ["rollout", "batch"])
@pytest.mark.parametrize("by", ["entropy", "signal"])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_top_decisions_against_the_oracle(kind: str, by: Any, scope: Any, share: float) -> None:
    for wide in (False, True):
        n = inputs.table(kind, 3)
        if wide:
            draw = np.random.default_rng(0)
            n["advantages"] = draw.standard_normal(n["mask"].shape)
            n["weights"] = draw.choice([0.0, 1.0, 2.0], n["mask"].shape)
        t = inputs.tensors(n)
        t |= {c: inputs.garbage(c, t[c], t["mask"]) for c in ("entropy_old", "advantages", "weights")}
        columns = (t[c] for c in ("entropy_old", "advantages", "mask", "weights"))
        got = top_decisions(*columns, share=share, by=by, scope=scope)
        weights = np.where(n["mask"], n["weights"] if wide else n["weights"][:, None], 0.0)
        size = np.abs(n["advantages"] if wide else n["advantages"][:, None]) if by == "signal" else 1.0
        score, live = n["entropy_old"] * size, weights != 0
        if scope == "batch":
            keep = np.array(top(score, live, share))
        else:
            keep = np.concatenate([top(score[i : i + 1], live[i : i + 1], share) for i in range(len(live))])
        np.testing.assert_array_equal(got.numpy(), np.where(keep, weights, 0.0))


@pytest.mark.oracle("spine")
@pytest.mark.parametrize("bounds", [(0.1, 0.5), (0.0, 1.0), (0.3, 0.3)])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_the_band_against_the_oracle(kind: str, bounds: tuple[float, float]) -> None:
    n = inputs.table(kind, 1)
    value, slope = band(n["entropy"], n["mask"], 0.3, *bounds)
    entropy = inputs.garbage("entropy", inputs.tensors(n)["entropy"], torch.from_numpy(n["mask"])).requires_grad_()
    got = entropy_band(entropy, torch.from_numpy(n["mask"]), coef=0.3, low=bounds[0], high=bounds[1])
    np.testing.assert_allclose(got.detach(), value, rtol=1e-9, atol=1e-12)
    got.sum().backward()
    inner = np.abs(value) > 1e-9  # at a quantile itself there is a kink
    np.testing.assert_allclose(entropy.grad.numpy()[inner], slope[inner])
    assert not entropy.grad[~torch.from_numpy(n["mask"])].any()


def whole(t: dict[str, Any], share: float, coef: float) -> torch.Tensor:
    weights = top_decisions(t["entropy"].detach(), t["advantages"], t["mask"], t["weights"], share=share)
    coefficients = token(weights, t["mask"], t["groups"])
    mask = coefficients != 0
    value = -trust_regions.ppo_clip(ratios.token(t["logp"], t["logp_old"], mask), t["advantages"])
    return inputs.scalar(value + entropy_band(t["entropy"], mask, coef=coef), coefficients)


@pytest.mark.oracle("spine")
def test_numbers_of_the_source() -> None:
    h = torch.tensor([[0.1, 0.2, 1.0, 2.0, 0.3]], dtype=torch.float64, requires_grad=True)
    old = torch.full_like(h, -1.0)
    logp = old.detach().clone().requires_grad_()
    t = {"entropy": h, "logp": logp, "logp_old": old.detach(), "mask": h > 0, "groups": I(0)}
    t |= {"advantages": torch.ones(1).double(), "weights": torch.ones(1).double()}
    loss = whole(t, 0.4, 0.01)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-0.997)
    np.testing.assert_allclose(logp.grad[0], [0, 0, -0.5, -0.5, 0], atol=1e-12)
    np.testing.assert_allclose(h.grad[0], [0, 0, -0.005, 0.005, 0], atol=1e-12)


def test_gradcheck_with_fixed_quantiles() -> None:
    """They are detached, so only where a decision's own entropy moves none of them is the check exact."""
    mask = torch.ones(1, 5, dtype=torch.bool)
    for place in (0, 4):  # outermost values, quantiles strictly inside

        def f(x: torch.Tensor, place: int = place) -> torch.Tensor:
            h = torch.tensor([[0.1, 0.5, 1.0, 2.0, 4.0]], dtype=torch.float64)
            h = torch.cat([h[:, :place], x.view(1, 1), h[:, place + 1 :]], 1)
            return entropy_band(h, mask, low=0.25, high=0.5)[0, place]

        x = torch.tensor([0.1, 4.0][place // 4], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(f, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_are_finite(dtype: Any) -> None:
    h = torch.tensor([[0.0, 30.0, torch.inf], [torch.nan] * 3, [1.0, torch.nan, torch.nan]], dtype=dtype)
    h.requires_grad_()
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]]) > 0
    value = entropy_band(h, mask)
    value.sum().backward()
    assert value.isfinite().all() and h.grad.isfinite().all() and not value[2].any()


@pytest.mark.reduction("spine")
@given(st.integers(0, 10_000))
def test_with_every_decision_and_no_band_it_is_the_clip(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    coefficients = token(t["weights"], t["mask"], t["groups"])
    plain = -trust_regions.ppo_clip(ratios.token(t["logp"], t["logp_old"], t["mask"]), t["advantages"])
    assert float(whole(t, 1.0, 0.0)) == pytest.approx(float(inputs.scalar(plain, coefficients)), rel=1e-12)


def test_through_the_loop_it_says_how_the_vote_went(tmp_path: Path) -> None:
    easy = ["task.digits=1", "task.alphabet='01'", "task.train=1", "task.held_out=1", "rollout.group_size=8"]
    recipe = resolve(method="spine", overrides=[*TINY, *easy])
    last = start(recipe, tmp_path / "run", quiet=True).last
    assert {"vote/share", "vote/reward", "weights/top_entropy", "band/outside_share"} <= last.keys()
    assert 0 < last["weights/top_share"] < 1
