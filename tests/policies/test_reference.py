from __future__ import annotations

import pytest
import torch

from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import LoraSpec, ModelSpec
from coterie.policies.reference import Reference
from coterie.policies.tiny import TinySpec
from coterie.rollouts import Prompt, Sampling


def load(lora: bool) -> CausalLM:
    spec = ModelSpec(init=TinySpec(width=16, layers=1, vocabulary="abc"), lora=LoraSpec(r=2) if lora else None)
    return CausalLM.load(spec)


def nudge(policy: CausalLM, by: float) -> None:
    with torch.no_grad():
        for p in policy.trainable_parameters():
            p.add_(by)


def rolled(policy: CausalLM):
    return policy.rollout(
        [Prompt((1, 3)), Prompt((1, 4, 5))], [[1, 2], [3, 4]], Sampling(temperature=0.8, max_tokens=6)
    )


@pytest.mark.parametrize("lora", [False, True])
def test_a_frozen_reference_stays_and_the_policy_is_untouched(lora):
    policy = load(lora)
    reference = Reference(policy)
    assert (reference.state_dict()["weights"] is None) == lora
    rollouts = rolled(policy)
    start = policy.score(rollouts)["logp"].detach()
    nudge(policy, 0.3)
    reference.after_step(1)
    moved = policy.score(rollouts)["logp"].detach()
    logp_ref = reference.score(rollouts)["logp_ref"]
    assert torch.equal(logp_ref, start) and not logp_ref.requires_grad
    assert torch.equal(policy.score(rollouts)["logp"], moved) and not torch.equal(moved, start)


def test_adapters_off_equal_the_base():
    policy = load(True)
    rollouts = rolled(policy)
    nudge(policy, 0.3)
    assert torch.equal(Reference(load(True)).score(rollouts)["logp_ref"], load(False).score(rollouts)["logp"])


def test_warm_started_adapters_are_the_reference_not_the_base():
    policy = load(True)
    nudge(policy, 0.3)
    rollouts = rolled(policy)
    reference = Reference(policy)
    nudge(policy, 0.3)
    assert (reference.score(rollouts)["logp_ref"] - rollouts["logp_old"]).abs().max() < 1e-5


@pytest.mark.parametrize("lora", [False, True])
def test_ema_and_periodic_follow(lora):
    policy = load(lora)
    ema, periodic = Reference(policy, "ema", decay=0.9), Reference(policy, "periodic", every=2)
    start = {n: p.clone() for n, p in policy.state_dict().items()}
    nudge(policy, 1.0)
    for reference in (ema, periodic):
        reference.after_step(1)
    name = next(iter(start))
    assert torch.allclose(ema.state_dict()["weights"][name], start[name] + 0.1)
    assert torch.equal(periodic.state_dict()["weights"][name], start[name])
    periodic.after_step(2)
    rollouts = rolled(policy)
    assert torch.equal(periodic.score(rollouts)["logp_ref"], policy.score(rollouts)["logp"])


def test_state_survives_a_reload():
    policy = load(False)
    reference = Reference(policy, "ema", decay=0.5)
    nudge(policy, 0.4)
    reference.after_step(1)
    rollouts = rolled(policy)
    fresh = Reference(policy, "ema", decay=0.5)
    fresh.load_state_dict(reference.state_dict())
    want = reference.score(rollouts)["logp_ref"]
    assert torch.equal(fresh.score(rollouts)["logp_ref"], want)
    fresh.after_step(2)  # a copy: moving one leaves the other
    assert torch.equal(reference.score(rollouts)["logp_ref"], want)
