"""The policy on a tiny model: recomputed = sampled, gradients whatever the chunks, text, weights, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.errors import PolicyError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.masked_diffusion import mask_predictor
from coterie.policies.masked_diffusion.policy import MaskedDiffusion
from coterie.policies.masked_diffusion.spec import MaskedDiffusionSpec
from coterie.policies.masked_diffusion.tiny import TinyMaskedSpec
from coterie.policies.tiny import TinySpec
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.sections import Rollout, Settings, Unmask

WIDTH = 7
DECODINGS: dict[str, dict[str, Any]] = {
    "one a step": {},
    "peak": {"order": "peak", "steps": 3},
    "margin": {"order": "margin", "steps": 4, "blocks": 2},
    "entropy": {"order": "entropy", "threshold": 0.2},
    "random": {"order": "random", "steps": 5, "after_end": True},
    "ascending": {"growth": "ascending", "eos_from": 0.01, "after_end": True},
    "ascending blocks": {"growth": "ascending", "blocks": 2},
}
SAMPLINGS = {"plain": {}, "hot": {"temperature": 1.7}, "cut": {"temperature": 0.8, "top_k": 6, "top_p": 0.9}}


def make(family: str = "bert", double: bool = False, **unmask: Any) -> MaskedDiffusion:
    init = TinyMaskedSpec(family=family, layers=2, width=16, heads=2, context=24, vocabulary="abcdefgh")
    settings = Settings(unmask=Unmask(**unmask), rollout=Rollout(max_tokens=WIDTH))
    policy = MaskedDiffusion.load(MaskedDiffusionSpec(init=init, seed=1, device="cpu"), settings)
    for p in policy.model.parameters():  # far from uniform, so that mistakes show
        p.data = p.data * 4
    if double:
        policy.model.double()
    return policy


def roll(policy: MaskedDiffusion, prompts: tuple[str, ...] = ("ab", "habc", "d"), **sampling: Any) -> Rollouts:
    made = [Prompt(policy.encode(text), index=i) for i, text in enumerate(prompts)]
    seeds = [[100 * i + k for k in range(4)] for i in range(len(made))]
    return policy.rollout(made, seeds, Sampling(max_tokens=WIDTH, **sampling), entropy=True)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("double", "bound"), [(False, 1e-5), (True, 1e-9)])
@torch.no_grad()
def test_recomputed_is_sampled(family: str, decoding: str, sampling: str, double: bool, bound: float) -> None:
    """Alone and in a batch of other rows, whose padding differs."""
    policy = make(family, double, **DECODINGS[decoding])
    rollouts = roll(policy, **SAMPLINGS[sampling])
    assert rollouts["mask"].any(-1).all() and (rollouts["logp_old"][rollouts["mask"]] < 0).any()
    for rows in (torch.arange(12), torch.tensor([5]), torch.tensor([9, 2, 0])):
        part = rollouts.rows(rows)
        found = policy.score(part, {"logp", "entropy"})
        assert found["logp"].dtype == (torch.float64 if double else torch.float32)
        for name in ("logp", "entropy"):
            assert float((found[name] - part[f"{name}_old"]).abs().max()) <= bound
        assert (found["logp"][~part["mask"]] == 0).all()


def test_the_table() -> None:
    policy = make(steps=3)
    policy.version = 5
    rollouts = roll(policy)
    canvas, unmasked = rollouts.media["canvas"], rollouts.media["unmasked"]
    assert canvas.shape == (12, WIDTH) and rollouts["prompt_index"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (rollouts["version"][rollouts["mask"]] == 5).all()
    assert torch.equal(rollouts["passes"], unmasked.amax(-1) + 1) and rollouts["passes"].max() == 3
    for row in range(12):
        ids = canvas[row].tolist()
        length = ids.index(2) + 1 if 2 in ids else WIDTH
        assert rollouts["lengths"][row] == length and bool(rollouts["truncated"][row]) == (2 not in ids)
        assert rollouts["mask"][row].tolist() == [t < length for t in range(rollouts["mask"].shape[1])]
        assert rollouts.texts[row] == policy.decode(ids[:length])
        assert rollouts["pass_index"][row, :length].tolist() == unmasked[row, :length].tolist()
        assert policy.mask_id not in ids[:length]
    parts = Rollouts.concat([rollouts.rows(torch.arange(6)), rollouts.rows(torch.arange(6, 12))])
    assert torch.equal(parts.media["canvas"], canvas)


def test_rows_do_not_depend_on_each_other() -> None:
    policy = make(order="confidence")
    whole, alone = roll(policy), roll(policy, ("ab",))
    assert torch.equal(whole.media["canvas"][:4], alone.media["canvas"])


@pytest.mark.parametrize("likelihood", ["trajectory", "one_step", "elbo"])
def test_chunks_change_neither_values_nor_gradients(likelihood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make(double=True, likelihood=likelihood)
    rollouts = roll(policy)
    found = {}
    for chunk in (10**6, 10):
        monkeypatch.setattr(mask_predictor, "CHUNK", chunk)
        policy.model.zero_grad()
        value = policy.score(rollouts)["logp"]
        (value * torch.linspace(-1, 1, value.numel()).view(value.shape)).sum().backward()
        found[chunk] = [value.detach(), *(p.grad for p in policy.model.parameters() if p.grad is not None)]
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.reduction("diffu-grpo", "cj-grpo")
@torch.no_grad()
def test_one_step_without_hidden_prompt_is_the_trajectory_of_one_step() -> None:
    policy = make(double=True, steps=1)
    rollouts = roll(policy)
    exact = policy.score(rollouts)["logp"]
    policy.unmask = Unmask(steps=1, likelihood="one_step")
    torch.testing.assert_close(policy.score(rollouts)["logp"], exact, rtol=1e-9, atol=1e-11)
    assert policy.estimates


@pytest.mark.parametrize("settings", [{"likelihood": "one_step", "prompt_masking": 0.5}, {"likelihood": "elbo"}])
@torch.no_grad()
def test_an_estimate_is_the_same_until_its_noise_is_drawn_anew(settings: dict[str, Any]) -> None:
    policy = make(**settings)
    rollouts = roll(policy)
    rollouts = rollouts.rows(torch.arange(12))  # cut to the longest
    first, order = policy.score(rollouts)["logp"], torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(policy.score(rollouts.rows(order))["logp"], first[order], rtol=0, atol=1e-5)
    other = policy.renoise(rollouts, 1)
    assert not torch.allclose(policy.score(other)["logp"], first, atol=1e-3)
    assert torch.equal(policy.score(policy.renoise(rollouts, 0))["logp"], first)


@torch.no_grad()
def test_the_bound_is_estimated_with_the_model() -> None:
    """Over many draws both ways of drawing agree on one rollout."""
    policy = make()
    rollouts = roll(policy).rows(torch.tensor([1]))
    means = []
    for coupled in (False, True):
        policy.unmask = Unmask(likelihood="elbo", masks=3000, coupled=coupled)
        means.append(float(policy.score(rollouts)["logp"].sum()))
    assert means[0] == pytest.approx(means[1], rel=0.03)


def test_what_is_given_is_no_decision() -> None:
    policy = make()
    given = torch.full((4, WIDTH), -1)
    given[:, 2] = 6
    prompts = [Prompt(policy.encode("ab"))]
    rollouts = policy.rollout(prompts, [[1, 2, 3, 4]], Sampling(max_tokens=WIDTH), given=given)
    assert (rollouts["tokens"][:, 2] == 6).all()
    assert not rollouts["mask"][:, 2].any()
    with torch.no_grad():
        assert float((policy.score(rollouts)["logp"] - rollouts["logp_old"]).abs().max()) <= 1e-5


def test_supervised_loss_falls_and_depends_on_its_seed_alone() -> None:
    policy = make()
    prompts = [policy.encode(t) for t in ("ab", "cd", "ef", "gh")] * 4
    answers = [policy.encode_completion(t) for t in ("ba", "dc", "fe", "hg")] * 4
    optimizer = torch.optim.Adam(policy.trainable_parameters(), 3e-3)
    with torch.no_grad():
        before, again, other = (float(policy.sft_loss(prompts, answers, s)) for s in (1, 1, 2))
    assert before == again != other
    for step in range(60):
        optimizer.zero_grad()
        policy.sft_loss(prompts, answers, step).backward()
        optimizer.step()
    with torch.no_grad():
        assert float(policy.sft_loss(prompts, answers, 1)) < 0.3 * before
    with pytest.raises(PolicyError, match="canvas"):
        policy.sft_loss(prompts[:1], [policy.encode_completion("a" * 8)], 1)


def test_it_loads_what_it_saved(tmp_path: Path) -> None:
    policy = make("modernbert")
    policy.save(tmp_path / "model")
    settings = Settings(rollout=Rollout(max_tokens=WIDTH))
    again = MaskedDiffusion.load(MaskedDiffusionSpec(name=str(tmp_path / "model"), device="cpu"), settings)
    assert again.mask_id == policy.mask_id == 3
    assert torch.equal(roll(again).media["canvas"], roll(policy).media["canvas"])


def test_a_causal_model_is_refused() -> None:
    causal = CausalLM.load(ModelSpec(init=TinySpec(layers=1, width=16, heads=2), device="cpu"))
    with pytest.raises(PolicyError, match="which token masks"):
        MaskedDiffusion(causal.model, causal.tokenizer, MaskedDiffusionSpec(name="x"), Settings())
    with pytest.raises(PolicyError, match="causal LM"):
        MaskedDiffusion(causal.model, causal.tokenizer, MaskedDiffusionSpec(name="x", mask_token_id=5), Settings())


def test_greedy_rollouts_cannot_be_trained_on() -> None:
    policy = make()
    rollouts = roll(policy, temperature=0.0)
    assert len({tuple(c) for c in rollouts.media["canvas"][:4].tolist()}) == 1
    with pytest.raises(PolicyError, match="temperature 0"):
        policy.score(rollouts)
    with pytest.raises(PolicyError, match="provides logp, entropy"):
        policy.score(rollouts, {"spread"})
