"""Training on smaller pictures than are evaluated: both are scored exactly, and what is learned carries over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_flow_on_the_loop import Silent
from test_flow_policy import PROMPTS, SEEDS, policy_of, spec_of

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.errors import PolicyError
from coterie.evaluator import complete
from coterie.loop import begin, credit, select
from coterie.policies.flow.model import shrunk
from coterie.policies.flow.policy import FlowPolicy
from coterie.policies.flow.spec import FlowShape, FlowSpec
from coterie.recipe import resolve
from coterie.rollout.strategies.renoised import renoised
from coterie.sampling import held_out
from coterie.update import update
from tests.e2e.conftest import DENOISES, TINY

DIGITS = [
    *TINY, *DENOISES, "task=digits", "model={flow: {layers: 2, width: 32, heads: 2}, resolutions: [1.0, 0.5]}",
    "denoise.resolution=0.5",
]  # fmt: skip


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("resolution", [1.0, 0.5, 0.75])
def test_log_probs_are_exact_at_every_size(resolution: float, guidance: float) -> None:
    policy = policy_of("float64", (8, 8))
    spec = spec_of("flow_sde", resolution=resolution, guidance=guidance)
    made = policy.rollout(PROMPTS, SEEDS, spec)
    side = round(8 * resolution)
    assert made.media["states"].shape == (12, 6, side, side) == (12, 6, *policy.shape_of(spec.denoising))
    assert made.texts[0].shape == (side, side)
    torch.testing.assert_close(policy.score(made)["logp"].detach(), made["logp_old"], rtol=1e-9, atol=1e-9)
    drawn = renoised(policy, PROMPTS, SEEDS, spec, False, draws=2)
    assert drawn.media["target"].shape == (12, 2, side, side)
    torch.testing.assert_close(policy.score(drawn)["logp"].detach(), drawn["logp_old"], rtol=1e-9, atol=1e-9)


def test_a_whole_picture_is_as_it_was() -> None:
    """Sizes are a matter of the spec: with 1.0 the learned positions are read as they are."""
    policy = policy_of("float64", (8, 8))
    whole, small = (policy.rollout(PROMPTS, SEEDS, spec_of(resolution=r)).media["states"] for r in (1.0, 0.5))
    assert torch.equal(whole, policy.rollout(PROMPTS, SEEDS, spec_of()).media["states"])
    assert small.shape != whole.shape
    assert policy.model._positions((8, 8)) is policy.model.position
    of_four = policy.model._positions((4, 4))
    grid = policy.model.position.view(4, 4, -1)
    torch.testing.assert_close(of_four[0], grid[:2, :2].mean((0, 1)))
    torch.testing.assert_close(of_four[3], grid[2:, 2:].mean((0, 1)))
    of_four.sum().backward()
    torch.testing.assert_close(policy.model.position.grad, torch.full_like(policy.model.position, 0.25))


def test_sizes_are_learned_from_shrunk_pictures() -> None:
    """A batch of supervised pictures is of one size, which its seed draws; with one size nothing is drawn."""
    policy = policy_of("float64", (8, 8))
    clean = torch.arange(64, dtype=torch.float64).view(1, 8, 8)
    want = [[float(clean[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()) for j in range(4)] for i in range(4)]
    assert shrunk(clean, (4, 4))[0].tolist() == want
    seen: list[tuple[int, ...]] = []
    policy.model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[1:])))
    prompts, pictures = [(0,)] * 3, [torch.zeros(8, 8, dtype=torch.float64)] * 3
    before = float(policy.sft_loss(prompts, pictures, 1).detach())
    policy.spec = policy.spec.model_copy(update={"resolutions": (1.0, 0.5)})
    for seed in range(12):
        policy.sft_loss(prompts, pictures, seed)
    assert seen[0] == (8, 8) and set(seen[1:]) == {(8, 8), (4, 4)}
    policy.spec = policy.spec.model_copy(update={"resolutions": (1.0,)})
    assert float(policy.sft_loss(prompts, pictures, 1).detach()) == before


def test_rollouts_are_small_and_held_out_samples_whole() -> None:
    pytest.importorskip("sklearn")
    run = build(resolve(method="paco-grpo-flow", overrides=[*DIGITS, "draw.prompts=2"]))
    batch = collect(run, 0, Clock())
    assert batch is not None
    assert {text.shape for text in batch.texts} == {(4, 4)}
    assert bool(batch["rewards"].isfinite().all()) and len(set(batch["rewards"].tolist())) > 1
    made = complete(run.policy, [run.task.held_out[0]], held_out(run.settings, run.task), 2, 0, "evaluation")
    assert {text.shape for text in made.texts} == {(8, 8)}
    run.rewards.close()


def test_it_learns_small_and_draws_whole() -> None:
    """What small pictures are rewarded for, ink and paper with nothing between, shows in whole ones too."""
    pytest.importorskip("sklearn")
    run = build(resolve(method="flow-grpo", overrides=[
        *DIGITS, "task={digits: {contrast: 4}}", "rollout.group_size=8", "draw.prompts=6", "steps=15",
        "model.flow={layers: 1, width: 16, heads: 2}", "warm_start={steps: 60, batch: 16}", "optimizer.lr=5e-3",
        "objective.terms=[]",
    ]))  # fmt: skip
    begin(run, Silent())  # type: ignore[arg-type]
    spec, rows = held_out(run.settings, run.task), [run.task.held_out[i] for i in range(10)]

    def whole() -> float:
        drawn = complete(run.policy, rows, spec, 4, 0, "evaluation").texts
        assert drawn[0].shape == (8, 8)
        return float(np.mean(run.task.rewards[1].fn(drawn)))

    before, small = whole(), []
    for step in range(run.settings.steps):
        batch = collect(run, step, Clock())
        assert batch is not None
        small.append(float(batch["components"]["contrast"].mean()))
        update(run, select(run, credit(run, batch, step, Clock()), step, Clock()), step, Clock())
    run.rewards.close()
    assert np.mean(small[-3:]) > np.mean(small[:3]) + 0.05
    assert whole() > before + 0.05


@pytest.mark.parametrize(("shape", "resolution", "told"), [
    ((8, 8), 0.6, "pictures of 4.8x4.8 are not cut into patches of 2 by 2"),
    ((8, 8), 0.375, "pictures of 3x3 are not cut into patches"),
    ((3,), 0.5, "no pictures, and have one size"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], resolution: float, told: str) -> None:
    with pytest.raises(PolicyError, match=told) as error:
        policy_of(shape=shape).rollout(PROMPTS, SEEDS, spec_of(resolution=resolution))
    assert error.value.where == "denoise.resolution" and error.value.hint
    if len(shape) == 1:
        policy = FlowPolicy.load(FlowSpec(flow=FlowShape(), resolutions=(0.5,), device="cpu"), shape, ["a"])
        with pytest.raises(PolicyError, match=told) as error:
            policy.sft_loss([(0,)], [torch.zeros(shape)], 0)
        assert error.value.where == "model.resolutions"
