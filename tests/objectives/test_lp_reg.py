from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.lp_reg import log_proxy
from oracles.lp_reg import lp_reg as oracle
from torch import Tensor

from coterie.metrics import Collector, collect
from coterie.objectives import ratios
from coterie.objectives.trust_regions import lp_reg, ppo_clip
from coterie.policies.logprobs import score_min_p
from coterie.rollouts import Sampling


def loss(t: dict[str, Any], **settings: Any) -> Tensor:
    r = ratios.token(t["logp"], t["logp_old"], t["mask"])
    return -lp_reg(r, t["advantages"], t["logp"], t["logp_min_p"], t["groups"], t["mask"], **settings)


@pytest.mark.oracle("lp-reg")
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"share": 0.5}, {"share": 1.0, "coef": 0.3}, {"share": 0.4, "eps_low": 0.2, "eps_high": 0.28}],
    ids=str,
)
def test_value_and_gradient_against_the_oracle(settings: dict[str, float], kind: str, wide: bool) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        if wide:
            n["advantages"] = np.random.default_rng(seed).standard_normal(n["mask"].shape)
        value, slope = oracle(n, **settings)
        t = inputs.tensors(n)
        t |= {c: inputs.garbage(c, t[c], t["mask"]) for c in ("logp", "logp_old", "logp_min_p")}
        t["logp"].requires_grad_()
        got = loss(t, **settings)
        scale = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(got.detach().numpy()[n["mask"]], value[n["mask"]], rtol=1e-9, atol=1e-9 * scale)
        torch.where(t["mask"], got, 0.0).sum().backward()
        np.testing.assert_allclose(t["logp"].grad.numpy(), slope, rtol=1e-9, atol=1e-9 * max(1.0, np.abs(slope).max()))


def row(logp: list[float], proxy: list[float], old: list[float] | None = None, dtype: Any = torch.float64) -> Any:
    one = [torch.tensor([x], dtype=dtype) for x in (logp, proxy, old or logp)]
    return {
        "logp": one[0].requires_grad_(), "logp_min_p": one[1], "logp_old": one[2], "groups": torch.zeros(1).long(),
        "advantages": torch.tensor([-1.0], dtype=dtype), "mask": torch.ones(1, len(logp), dtype=torch.bool),
    }  # fmt: skip


@pytest.mark.oracle("lp-reg")
def test_numbers_of_the_source() -> None:
    t = row([-5.0, -4.0, -0.1], [-4.8, -3.9, -0.05])
    with collect(seen := Collector(), t["mask"]):
        value = loss(t, share=0.7).mean()
    value.backward()
    assert float(value.detach()) == pytest.approx(1.008858, abs=1e-6)
    np.testing.assert_allclose(t["logp"].grad[0], [0.259532, 0.298276, 0.333333], atol=1e-6)
    assert seen.means()["lp_reg/protected_share"] == pytest.approx(2 / 3)
    assert log_proxy([3.0, 2.0, -1.0, -4.0], 0.02)[1] == pytest.approx(-1.313262, abs=1e-6)


def test_noise_is_not_protected_and_one_decision_alone_neither() -> None:
    plain = loss(row([-5.0, -4.0, -0.1], [-math.inf, -math.inf, -0.05]), share=0.7)
    assert torch.equal(plain, loss(row([-5.0, -4.0, -0.1], [-4.8, -3.9, -0.05]), share=0.0))
    assert torch.equal(plain, loss(row([-5.0, -4.0, -0.1], [-4.8, -3.9, -0.05]), share=0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_are_finite(dtype: Any) -> None:
    t = row([-40.0, -14.0, -1.0], [-0.1, -0.1, -math.inf], [-26.0, -28.0, -1e-3], dtype)
    value = loss(t, share=1.0)
    value.sum().backward()
    assert value.isfinite().all() and t["logp"].grad.isfinite().all()


def test_gradcheck_where_it_is_smooth() -> None:
    t = row([-5.0, -4.0, -3.0], [-4.8, -3.5, -2.0], [-5.1, -4.2, -3.3])
    assert torch.autograd.gradcheck(lambda x: loss(t | {"logp": x}, share=1.0), t["logp"])


@pytest.mark.reduction("lp-reg")
@given(st.integers(0, 10_000), st.floats(0.01, 1), st.floats(0.01, 3))
def test_a_share_of_nothing_is_the_clip(seed: int, low: float, high: float) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    r = ratios.token(t["logp"], t["logp_old"], t["mask"])
    want = -ppo_clip(r, t["advantages"], eps_low=low, eps_high=high)
    assert torch.equal(loss(t, share=0.0, eps_low=low, eps_high=high)[t["mask"]], want[t["mask"]])


@pytest.mark.oracle("lp-reg")
@pytest.mark.parametrize("chunk", [1, 3, 50])
@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.6, 1.0])
def test_the_column_is_the_proxy_of_the_oracle(min_p: float, chunk: int) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((9, 4), (11, 4)))
    tokens = torch.randint(11, (9,), generator=draw)
    got = score_min_p(hidden, lambda h: h @ weight.T, tokens, Sampling(temperature=0.7), min_p, chunk)
    want = [log_proxy((h @ weight.T / 0.7).tolist(), min_p)[v] for h, v in zip(hidden, tokens.tolist(), strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-9)
    assert score_min_p(hidden[:0], lambda h: h @ weight.T, tokens[:0], Sampling(), min_p, chunk).shape == (0,)
