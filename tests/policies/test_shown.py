"""What the policy makes of its own wrong rollouts once it was shown a right one."""

from __future__ import annotations

import pytest
import torch

from coterie.errors import PolicyError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.rollouts import Prompt, Rollouts, Sampling


def rolled(sampling: Sampling, context: int = 64) -> tuple[CausalLM, Rollouts]:
    """Two prompts, rollouts in turns; the first group has right ones, rows 2 and 4, the second has none."""
    spec = ModelSpec(init=TinySpec(width=16, layers=1, vocabulary="abc>", context=context))
    policy = CausalLM.load(spec)
    for p in policy.trainable_parameters():  # far from uniform
        p.data.mul_(8.0)
    prompts = [Prompt(policy.encode(text), {"prompt": text}) for text in ("ab", "cab")]
    out = policy.rollout(prompts, [[1, 2, 3], [4, 5, 6]], sampling)
    out = out.rows(torch.tensor([0, 3, 1, 4, 2, 5]))
    return policy, out.with_columns(correct=torch.tensor([False, False, True, False, True, False]))


def logits(policy: CausalLM, prompt: tuple[int, ...], completion: list[int], temperature: float) -> torch.Tensor:
    """[n,V] by the model as it stands, for the n tokens of a completion."""
    ids = torch.tensor([[*prompt, *completion]])
    out = policy.model(ids).logits[0, len(prompt) - 1 : -1].double() / temperature
    out[:, list(policy.engine.forbid)] = -torch.inf
    return out.log_softmax(-1)


@pytest.mark.oracle("srpo-sample-routed")
@pytest.mark.parametrize("sampling", [Sampling(max_tokens=5), Sampling(temperature=0.7, top_k=3, max_tokens=5)])
def test_kl_entropy_and_gradient_are_those_of_two_plain_forwards(sampling: Sampling) -> None:
    policy, rollouts = rolled(sampling)
    found = policy.score_shown(rollouts, ">{solution}>")
    kl, entropy, mask = found["kl_shown"], found["entropy_shown"], rollouts["mask"]
    assert not entropy.requires_grad and (kl[~mask] == 0).all() and (entropy[~mask] == 0).all()
    taught = torch.tensor([True, False, False, False, False, False])  # wrong, and a right one beside it
    assert torch.equal(kl.isnan().any(-1), ~taught)
    tokens = rollouts["tokens"][0][mask[0]].tolist()
    prompt = rollouts.prompts[0].tokens
    own = logits(policy, prompt, tokens, sampling.temperature)
    longer = policy.encode("ab>" + rollouts.texts[2] + ">")
    with torch.no_grad():
        shown = logits(policy, longer, tokens, sampling.temperature)
    if sampling.top_k:
        kept = own >= own.topk(sampling.top_k, -1).values[:, -1:]
        own = own.masked_fill(~kept, -torch.inf).log_softmax(-1)
    p = own.exp()
    want = (p * torch.where(p > 0, own.masked_fill(p == 0, 0) - shown.masked_fill(p == 0, 0), 0.0)).sum(-1)
    live = kl[0][mask[0]]
    assert (live.detach() > 0).any()
    torch.testing.assert_close(live.double(), want, rtol=1e-4, atol=1e-5)
    q = shown.exp()
    torch.testing.assert_close(
        entropy[0][mask[0]].double(), -(q * shown.masked_fill(q == 0, 0)).sum(-1), rtol=1e-4, atol=1e-5
    )
    ours = torch.autograd.grad(live.sum(), policy.trainable_parameters())
    theirs = torch.autograd.grad(want.sum(), policy.trainable_parameters())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-7)


def test_nobody_is_shown_what_does_not_fit_or_is_not_there() -> None:
    policy, rollouts = rolled(Sampling(max_tokens=5), context=12)
    assert policy.score_shown(rollouts, ">{solution}>" + "a" * 9)["kl_shown"].isnan().any(-1).all()
    wrong = rollouts.with_columns(correct=torch.zeros(6, dtype=torch.bool))
    assert wrong["mask"].any() and policy.score_shown(wrong, "{solution}")["kl_shown"].isnan().any(-1).all()
    with pytest.raises(PolicyError, match="no place for the right rollout"):
        policy.score_shown(rollouts, "here it is")
