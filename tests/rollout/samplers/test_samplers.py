"""The rules of a denoising step against their oracles, and what each does to a distribution that is known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import denoising as oracle
from torch import Tensor

from coterie import registry
from coterie.policies.flow.steps import divergence, entropy, log_density, noise_levels, transition
from coterie.rollouts import Denoising

NAMES = sorted(oracle.STEPS)
LEVELS = st.tuples(st.floats(0.02, 0.98), st.floats(0.05, 0.95), st.floats(0.0, 0.95))
X, V = [1.0, -1.0], [0.5, 0.0]


def rule(name: str, x: list[float], v: list[float], s: float, t: float, cap: float, **settings: float) -> tuple:
    wide = [torch.tensor([[value]], dtype=torch.float64) for value in (s, t, cap)]
    given_ = [torch.tensor([row], dtype=torch.float64) for row in (x, v)]
    mean, std = registry.get("sampler", name).fn(*given_, *wide, **settings)
    assert std.shape == (1, 1) and mean.shape == (1, len(x))
    return mean[0].tolist(), float(std)


def test_every_rule_has_an_oracle() -> None:
    assert {p.slug for p in registry.all_pieces("sampler") if p.module.startswith("coterie.")} == {*NAMES, "ode"}


@pytest.mark.oracle("flow-grpo", "dancegrpo", "cps", "ddpo")
@pytest.mark.parametrize("name", NAMES)
@given(levels=LEVELS, seed=st.integers(0, 99))
def test_mean_and_std_are_the_oracles(name: str, levels: tuple[float, float, float], seed: int) -> None:
    s, part, noise = levels
    rng = np.random.default_rng(seed)
    x, v = rng.standard_normal(3).tolist(), rng.standard_normal(3).tolist()
    want_mean, want_std = oracle.STEPS[name](x, v, s, s * part, 0.9, noise)
    mean, std = rule(name, x, v, s, s * part, 0.9, noise=noise)
    np.testing.assert_allclose(mean, want_mean, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(std, want_std, rtol=1e-8, atol=1e-10)


@pytest.mark.oracle("flow-grpo", "dancegrpo", "cps")
@pytest.mark.parametrize(("name", "noise", "mean", "std", "logp"), [
    ("flow_sde", 0.7, [0.8152, -0.8775], 0.4427, -0.3541),
    ("dance_sde", 0.3, [0.9438, -0.9944], 0.0949, 1.1863),
    ("cps", 0.7, [0.5296, -0.6178], 0.6237, -0.6969),
    ("sage_sde", 0.7, [0.8471, -0.9065], 0.3869, -0.2193),
])  # fmt: skip
def test_the_worked_examples(name: str, noise: float, mean: list[float], std: float, logp: float) -> None:
    """x [1,-1], v [.5,0], noise level .8 to .7, standard normal draws [1,0]."""
    got_mean, got_std = rule(name, X, V, 0.8, 0.7, 0.9, noise=noise)
    assert got_mean == pytest.approx(mean, abs=6e-5) and got_std == pytest.approx(std, abs=6e-5)
    m = torch.tensor([got_mean], dtype=torch.float64)
    after = m + got_std * torch.tensor([[1.0, 0.0]])
    spread = torch.tensor([got_std], dtype=torch.float64)
    assert float(log_density(after, m, spread, "mean")) == pytest.approx(logp, abs=6e-5)
    if name == "cps":
        assert float(log_density(after, m, spread, "unscaled")) == pytest.approx(-0.1945, abs=6e-5)
    if name == "flow_sde":
        first_mean, first_std = rule(name, X, V, 1.0, 0.9, 0.9, noise=noise)
        assert first_mean == pytest.approx([0.705, -0.755], abs=6e-5) and first_std == pytest.approx(0.7, abs=6e-5)


@pytest.mark.oracle("ddpo")
def test_ddpos_own_example() -> None:
    """x [1,-1], e [.5,0], abar .3 to .45, eta 1, next state [1.2,-1]; and ours is that step, scaled."""
    mean, std = oracle.ddpo([1.0, -1.0], [0.5, 0.0], 0.3, 0.45, 1.0)
    assert mean == pytest.approx([0.9808, -1.2247], abs=6e-5) and std == pytest.approx(0.5118, abs=6e-5)
    assert oracle.log_density([1.2, -1.0], mean, std) == pytest.approx(-0.3431, abs=6e-5)


@pytest.mark.reduction("flow-grpo", "dancegrpo", "cps", "ddpo")
@pytest.mark.parametrize("name", NAMES)
@given(levels=LEVELS)
def test_without_noise_a_step_is_the_odes(name: str, levels: tuple[float, float, float]) -> None:
    s, t = levels[0], levels[0] * levels[1]
    mean, std = rule(name, X, V, s, t, 0.9, noise=0.0)
    assert std == 0.0 and mean == pytest.approx(oracle.ode(X, V, s, t, 0.9)[0], abs=1e-10)


@pytest.mark.reduction("flow-grpo", "dancegrpo")
@given(levels=LEVELS)
def test_one_sde_is_the_other_at_the_same_diffusion(levels: tuple[float, float, float]) -> None:
    s, t, noise = levels[0], levels[0] * levels[1], levels[2] + 0.05
    g = noise * math.sqrt(s / (1 - s))
    mean, std = rule("flow_sde", X, V, s, t, 0.9, noise=noise)
    other, other_std = rule("dance_sde", X, V, s, t, 0.9, noise=g)
    assert mean == pytest.approx(other, rel=1e-9) and std == pytest.approx(other_std, rel=1e-9)


@pytest.mark.parametrize(("step", "ratio"), [(0.01, 0.99), (0.001, 0.999), (0.0001, 0.9999)])
def test_the_integrated_diffusion_is_the_plain_one_of_small_steps(step: float, ratio: float) -> None:
    """Here below sigma = 1, where both have an end."""
    _, exact = rule("sage_sde", X, V, 0.5, 0.5 - step, 0.9)
    _, plain = rule("flow_sde", X, V, 0.5, 0.5 - step, 0.9)
    assert exact / plain == pytest.approx(ratio, abs=3 * step)


def test_the_schedule() -> None:
    assert noise_levels(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    np.testing.assert_allclose(noise_levels(7, 3.0, torch.float64), oracle.schedule(7, 3.0), rtol=1e-12)


@pytest.mark.oracle("flow-grpo", "dancegrpo", "cps", "ddpo")
@pytest.mark.parametrize("reduce", ["mean", "sum", "unscaled"])
def test_log_density_and_divergence_are_the_oracles(reduce: str) -> None:
    rng = np.random.default_rng(3)
    after, mean, other = (torch.from_numpy(rng.standard_normal((4, 2, 3))) for _ in range(3))
    std = torch.from_numpy(rng.uniform(0.1, 1.5, 4))
    rows = [[t[i].flatten().tolist() for t in (after, mean, other)] for i in range(4)]
    want = [oracle.log_density(a, m, float(s), reduce) for (a, m, _), s in zip(rows, std, strict=True)]
    np.testing.assert_allclose(log_density(after, mean, std, reduce), want, rtol=1e-12)
    want = [oracle.divergence(m, o, float(s), reduce) for (_, m, o), s in zip(rows, std, strict=True)]
    np.testing.assert_allclose(divergence(mean, other, std, reduce), want, rtol=1e-12)


def test_closed_forms_are_what_sampling_gives() -> None:
    """KL, entropy, and what k1, k2 and k3 estimate: k1's mean is the KL, the others' are smaller by the dimensions."""
    generator = torch.Generator().manual_seed(0)
    numbers, count = 6, 200_000
    mean, other = torch.randn(2, 1, numbers, generator=generator, dtype=torch.float64) * 0.3
    std = torch.tensor([0.8], dtype=torch.float64)
    after = mean + std * torch.randn(count, numbers, generator=generator, dtype=torch.float64)
    for reduce in ("sum", "mean"):
        ours, theirs = (log_density(after, m.expand_as(after), std.expand(count), reduce) for m in (mean, other))
        exact = float(divergence(mean, other, std, reduce))
        error = float((ours - theirs).std() / math.sqrt(count))
        assert float((ours - theirs).mean()) == pytest.approx(exact, abs=4 * error)
        assert -float(ours.mean()) == pytest.approx(float(entropy(std, numbers, reduce)), abs=4 * error + 4e-3)
    k2 = float((0.5 * (ours - theirs) ** 2).mean())
    total = exact * numbers
    assert k2 == pytest.approx((2 * total + total**2) / (2 * numbers**2), rel=0.05) and k2 < exact / 3


class Gaussian:
    """The exact velocity where data are N(1, .5^2) in each number."""

    mean, std = 1.0, 0.5

    def velocity(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = (1 - sigma) ** 2 * self.std**2 + sigma**2
        clean = self.mean + (1 - sigma) * self.std**2 / variance * (x - (1 - sigma) * self.mean)
        return (x - (1 - sigma) * clean) / sigma - clean


def moments(name: str, steps: int, **settings: float) -> tuple[float, float]:
    """Mean and standard deviation of samples, exactly: every step is linear in a Gaussian state."""
    levels = noise_levels(steps, 1.0, torch.float64)
    spec = Denoising(steps, sampler=name, settings=tuple(settings.items()))
    mean, variance = 0.0, 1.0
    for step in range(steps):
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        v = Gaussian().velocity(x, levels[step])
        to, std = transition(spec, x, v, torch.tensor([step, step]))
        shift, slope = float(to[0]), float(to[1] - to[0])
        mean, variance = slope * mean + shift, slope**2 * variance + float(std[0]) ** 2
    return mean, math.sqrt(variance)


@pytest.mark.reduction("flow-grpo", "dancegrpo", "ddpo")
@pytest.mark.parametrize("name", ["ode", "flow_sde", "dance_sde", "sage_sde", "ddim"])
def test_the_marginal_is_the_odes(name: str) -> None:
    """With the exact velocity, samples become those of the data as steps become many."""
    error = [max(abs(m - 1.0), abs(s - 0.5)) for m, s in (moments(name, n) for n in (20, 200, 2000))]
    assert error[2] < 2e-3 and error[2] < error[1] < error[0] + 1e-3


@pytest.mark.reduction("cps")
def test_cps_contracts() -> None:
    """It keeps coefficients, not the marginal: samples stand closer together than the data, however many steps."""
    spread = [moments("cps", n, noise=0.7)[1] for n in (10, 40, 200, 1000)]
    assert spread == pytest.approx([0.37, 0.41, 0.42, 0.42], abs=0.01)
    assert moments("cps", 200, noise=0.0)[1] == pytest.approx(0.5, abs=5e-3)
