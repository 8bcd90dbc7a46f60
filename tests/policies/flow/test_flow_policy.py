"""The flow policy: what it samples is what it scores, by its seeds alone; statistics, gradients, saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import denoising as oracle
from torch import Tensor, nn

from coterie.errors import PolicyError
from coterie.policies.flow.policy import FlowPolicy
from coterie.policies.flow.spec import FlowShape, FlowSpec
from coterie.policies.flow.steps import noise_levels
from coterie.policies.reference import Reference
from coterie.rollouts import Denoising, Prompt, Rollouts, Sampling

PROMPTS = [Prompt((k,), index=k) for k in range(3)]
SEEDS = [[10 * g + k for k in range(4)] for g in range(3)]
SAMPLERS = ["flow_sde", "dance_sde", "cps", "sage_sde", "ddim"]


def policy_of(dtype: str = "float32", shape: tuple[int, ...] = (4, 4), seed: int = 0) -> FlowPolicy:
    """A model that does something: last layers start at zero, so all weights are drawn."""
    spec = FlowSpec(flow=FlowShape(layers=2, width=16, heads=2), dtype=dtype, device="cpu")
    policy = FlowPolicy.load(spec, shape, ["a", "b", "c"])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.2)
    return policy


def spec_of(sampler: str = "flow_sde", steps: int = 5, **kwargs: object) -> Sampling:
    return Sampling(denoising=Denoising(steps, sampler=sampler, **kwargs))  # type: ignore[arg-type]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("shape", [(4, 4), (3,)], ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_recomputed_log_probs_are_the_sampled_ones(sampler: str, shape: tuple[int, ...], guidance: float) -> None:
    for dtype, limit in (("float32", 1e-5), ("float64", 1e-9)):
        policy = policy_of(dtype, shape)
        made = policy.rollout(PROMPTS, SEEDS, spec_of(sampler, guidance=guidance))
        assert made.media["states"].dtype == getattr(torch, dtype) == made["logp_old"].dtype
        some = made.rows(torch.tensor([7, 2, 11, 3]))  # in another batch
        again = policy.score(some)["logp"].detach()
        assert float((again - some["logp_old"]).abs().max()) <= limit <= policy.tolerance
        assert bool((made["logp_old"][made["mask"]] != 0).all()) and made["mask"].any()


@pytest.mark.oracle("flow-grpo", "dancegrpo", "cps", "ddpo")
@pytest.mark.parametrize("reduce", ["mean", "sum", "unscaled"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_path_is_the_oracles(sampler: str, reduce: str) -> None:
    """Every state, standard deviation and log-prob of a rollout, from the model's velocity and the seed's draws."""
    policy = policy_of("float64", (3,))
    spec = spec_of(sampler, 4, shift=3.0, reduce=reduce, settings=(("noise", 0.6),))
    made = policy.rollout(PROMPTS[:1], [[5]], spec)
    levels, draws = oracle.schedule(4, 3.0), policy.noise([[5]], spec.denoising)[0]
    x = draws[0].tolist()
    for step in range(4):
        at = torch.tensor([x], dtype=torch.float64), torch.tensor([levels[step]], dtype=torch.float64)
        v = policy.model(*at, torch.tensor([0]))[0].tolist()
        if sampler == "ddim" and levels[step] == 1.0:  # the oracle's scaling has no abar there: ancestral noise alone
            clean = [a - b for a, b in zip(x, v, strict=True)]
            std, t = 0.6 * levels[1], levels[1]
            kept = np.sqrt(t * t - std * std)
            mean = [(1 - t) * c + kept * a for c, a in zip(clean, x, strict=True)]
        elif levels[step + 1] == 0.0 and sampler in ("cps", "ddim"):
            mean, std = [a - levels[step] * b for a, b in zip(x, v, strict=True)], 0.0
        else:
            mean, std = oracle.STEPS[sampler](x, v, levels[step], levels[step + 1], levels[1], 0.6)
        x = [m + std * e for m, e in zip(mean, draws[step + 1].tolist(), strict=True)]
        np.testing.assert_allclose(made.media["states"][0, step + 1], x, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(float(made["step_std"][0, step]), std, rtol=1e-9)
        assert bool(made["mask"][0, step]) == (std > 0)
        if std > 0:
            want = oracle.log_density(x, mean, std, reduce)
            np.testing.assert_allclose(float(made["logp_old"][0, step]), want, rtol=1e-8)
            assert float(made["step_size"][0, step]) == pytest.approx(levels[step] - levels[step + 1])


def test_a_rollout_depends_on_its_seed_alone() -> None:
    policy = policy_of("float64")
    whole = policy.rollout(PROMPTS, SEEDS, spec_of())
    alone = policy.rollout(PROMPTS[1:2], [[SEEDS[1][2]]], spec_of())
    torch.testing.assert_close(alone.media["states"][0], whole.media["states"][6], rtol=1e-12, atol=1e-12)
    start = whole.media["states"][:, 0]
    assert len(torch.unique(start, dim=0)) == 12
    shared = policy.rollout(PROMPTS, SEEDS, spec_of(shared_noise=True)).media["states"]
    assert len(torch.unique(shared[:, 0], dim=0)) == 3 and len(torch.unique(shared[:, 1], dim=0)) == 12


def test_steps_that_draw_no_noise_are_no_decisions() -> None:
    policy = policy_of("float64")
    made = policy.rollout(PROMPTS, SEEDS, spec_of(stochastic=(1, 2)), entropy=True)
    assert made["mask"].tolist() == [[False, True, True, False, False]] * 12
    assert made["lengths"].tolist() == [2] * 12
    states = made.media["states"]
    v = policy.velocity(states[:, 0], PROMPTS, made["groups"], torch.zeros(12, dtype=torch.long), Denoising(5))
    torch.testing.assert_close(states[:, 1], states[:, 0] - 0.2 * v)
    some = made.rows(torch.tensor([3, 4]))  # the table is cut after the last decision, states are not
    assert some["mask"].shape[1] == 3 and some.media["states"].shape[1] == 6
    torch.testing.assert_close(policy.score(some)["logp"], some["logp_old"])
    deterministic = policy.rollout(PROMPTS, SEEDS, spec_of("ode"))
    assert not deterministic["mask"].any()


def test_tables_are_joined_with_their_states() -> None:
    policy = policy_of("float64")
    parts = [policy.rollout(PROMPTS[:1], [SEEDS[0]], spec_of()), policy.rollout(PROMPTS[1:2], [SEEDS[1]], spec_of())]
    both = Rollouts.concat(parts)
    torch.testing.assert_close(policy.score(both)["logp"], both["logp_old"], rtol=1e-10, atol=1e-10)
    assert both.media["states"].shape[0] == 8 and both["groups"].tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("guidance", [1.0, 1.7])
def test_gradients(guidance: float) -> None:
    """Of log-prob and divergences against finite differences; the part without a prompt takes none."""
    policy = policy_of("float64", (3,))
    made = policy.rollout(PROMPTS, SEEDS, spec_of(guidance=guidance, keep_means=True))
    made.media["mean_ref"] = policy_of("float64", (3,), seed=1).means(made)
    weight = policy.model.leave.bias if guidance == 1.0 else policy.model.prompt.weight
    place = 0 if guidance == 1.0 else (1, 3)
    for name in ("logp", "kl_ref", "mean_gap"):
        policy.model.zero_grad()
        policy.score(made, {name})[name].sum().backward()
        values = []
        for move in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += move
                values.append(float(policy.score(made, {name})[name].sum()))
                weight[place] -= move
        assert weight.grad is not None
        numeric = (values[0] - values[1]) / 2e-5
        assert float(weight.grad[place]) == pytest.approx(numeric, rel=1e-5, abs=1e-6)
        if guidance != 1.0:
            assert not weight.grad[policy.model.unconditional].any()


def test_divergence_from_where_it_was_and_from_the_reference() -> None:
    """Zero where nothing moved, the oracle's where it did."""
    policy = policy_of("float64", (3,))
    reference = Reference(policy)
    made = policy.rollout(PROMPTS, SEEDS, spec_of(keep_means=True))
    with torch.no_grad():
        assert float(policy.score(made, {"mean_gap"})["mean_gap"].abs().max()) < 1e-20
        before = policy.means(made)
        policy.model.leave.bias += 0.3
        made.media["mean_ref"] = reference.means(made)
        torch.testing.assert_close(made.media["mean_ref"], before)
        now, scores = policy.means(made), policy.score(made, {"mean_gap", "kl_ref"})
    for row, step in ((0, 0), (5, 3)):
        want = oracle.divergence(
            now[row, step].tolist(), before[row, step].tolist(), float(made["step_std"][row, step])
        )
        assert float(scores["kl_ref"][row, step]) == pytest.approx(want, rel=1e-9)
        assert float(scores["mean_gap"][row, step]) == pytest.approx(want, rel=1e-9)


class Exact(nn.Module):
    """The velocity of data N(1, .5^2) in each of two numbers."""

    shape, classes, unconditional, told = (2,), ("a",), 1, False

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        s = sigma.unsqueeze(-1)
        clean = self.mean + (1 - s) * 0.25 / ((1 - s) ** 2 * 0.25 + s**2) * (x - (1 - s) * self.mean)
        return (x - (1 - s) * clean) / s - clean


@pytest.mark.reduction("flow-grpo", "dancegrpo", "ddpo")
@pytest.mark.parametrize("sampler", ["flow_sde", "dance_sde", "sage_sde", "ddim"])
def test_samples_are_distributed_as_the_odes(sampler: str) -> None:
    """Means and standard deviations at every tenth noise level, within four standard errors and the steps' own."""
    policy = FlowPolicy(Exact(), FlowSpec(flow=FlowShape()))  # type: ignore[arg-type]
    count, steps = 2000, 100
    made = policy.rollout([Prompt((0,))], [list(range(count))], spec_of(sampler, steps)).media["states"]
    levels = noise_levels(steps, 1.0, torch.float64)
    for step in range(0, steps + 1, 10):
        s = float(levels[step])
        want_mean, want_std = 1.0 - s, float(np.hypot(0.5 * (1 - s), s))
        at = made[:, step].flatten()
        error = 4 * want_std / np.sqrt(2 * count)
        assert float(at.mean()) == pytest.approx(want_mean, abs=error + 0.01), step
        assert float(at.std()) == pytest.approx(want_std, abs=error + 0.01), step


def test_flow_matching_learns_and_is_drawn_by_its_seed() -> None:
    policy = policy_of("float64", (3,))
    clean = [policy.encode_completion(np.full(3, float(k))) for k in range(3)] * 8
    prompts = [(k,) for k in range(3)] * 8
    assert torch.equal(policy.sft_loss(prompts, clean, 4), policy.sft_loss(prompts, clean, 4))
    assert not torch.equal(policy.sft_loss(prompts, clean, 4), policy.sft_loss(prompts, clean, 5))
    optimizer = torch.optim.Adam(policy.trainable_parameters(), 1e-2)
    losses = []
    for step in range(60):
        loss = policy.sft_loss(prompts, clean, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    policy = policy_of()
    policy.save(tmp_path / "policy")
    again = FlowPolicy.load(FlowSpec(name=str(tmp_path / "policy"), device="cpu"))
    made, same = (p.rollout(PROMPTS, SEEDS, spec_of()) for p in (policy, again))
    assert torch.equal(made.media["states"], same.media["states"])
    twin = policy.copy_frozen()
    assert not twin.trainable_parameters() and torch.equal(twin.score(made)["logp"], policy.score(made)["logp"])


def test_mistakes_have_a_mend(tmp_path: Path) -> None:
    policy = policy_of()
    with pytest.raises(PolicyError, match="no class 'd'"):
        policy.encode("d")
    with pytest.raises(PolicyError, match="patches of 2 by 2"):
        FlowPolicy.load(FlowSpec(flow=FlowShape(patch=2)), (5, 4), ["a"])
    with pytest.raises(PolicyError, match=r"config\.json"):
        FlowPolicy.load(FlowSpec(name=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(PolicyError, match="holds no flow model"):
        FlowPolicy.load(FlowSpec(name=str(tmp_path)))
    with pytest.raises(PolicyError, match="not entropy"):
        policy.score(policy.rollout(PROMPTS, SEEDS, spec_of()), {"entropy"})
    with pytest.raises(PolicyError, match="one of tokens"):
        policy.rollout(PROMPTS, SEEDS, Sampling())
    assert policy.decode(policy.encode("b")) == "b"
