"""Block-causal attention: who sees whom, that nothing behind a block matters, exact log-probs, and what it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_policy import WIDTH, roll
from transformers import ModernBertConfig

from coterie.errors import PolicyError
from coterie.policies.masked_diffusion import block_causal
from coterie.policies.masked_diffusion.policy import MaskedDiffusion
from coterie.policies.masked_diffusion.spec import MaskedDiffusionSpec
from coterie.policies.masked_diffusion.tiny import TinyMaskedSpec
from coterie.sections import Rollout, Settings, Unmask


def make(family: str = "bert", double: bool = True, blocks: int = 3, **unmask: Any) -> MaskedDiffusion:
    init = TinyMaskedSpec(family=family, layers=2, width=16, heads=2, context=24, vocabulary="abcdefgh")
    settings = Settings(unmask=Unmask(blocks=blocks, **unmask), rollout=Rollout(max_tokens=WIDTH))
    spec = MaskedDiffusionSpec(init=init, seed=1, device="cpu", attention="block_causal")
    policy = MaskedDiffusion.load(spec, settings)
    for p in policy.model.parameters():  # far from uniform, so that mistakes show
        p.data = p.data * 4
    if double:
        policy.model.double()
    return policy


def test_who_sees_whom() -> None:
    """In loops: the prompt itself, a block itself and what is before, padding nobody, and nobody padding."""
    block = block_causal.block_of(5, Unmask(blocks=2))
    assert block.tolist() == [0, 0, 0, 1, 1]
    lengths, width = [2, 4], 9
    attention = torch.tensor([[c < n + 5 for c in range(width)] for n in lengths])
    place = torch.tensor([[n + c for c in range(5)] for n in lengths])
    got = block_causal.visible(attention, place, block)
    for row, n in enumerate(lengths):
        rank = [-1] * n + block.tolist()
        for looks in range(width):
            for at in range(width):
                inside = looks < len(rank) and at < len(rank)
                want = looks == at or (inside and rank[at] <= rank[looks])
                if looks < len(rank):  # what padding sees is read by nobody
                    assert bool(got[row, looks, at]) == want, (row, looks, at)
    assert got.diagonal(dim1=1, dim2=2).all()


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@torch.no_grad()
def test_what_is_behind_a_block_does_not_matter(family: str) -> None:
    """Logits of a block are the same whatever stands in later blocks, and not whatever stands in it or before."""
    policy = make(family)
    assert policy.block is not None and policy.block.tolist() == [0, 0, 0, 1, 1, 2, 2]
    prompts, canvas = [policy.encode("ab"), policy.encode("habcd")], torch.full((2, WIDTH), policy.mask_id)

    def logits(changed: int | None, first: int = 0) -> torch.Tensor:
        now, asked = canvas.clone(), [list(p) for p in prompts]
        if changed is not None:
            now[:, changed] = policy.encode("e")[-1]
        if first:
            for p in asked:
                p[1] = first
        return policy.predictor.logits(policy.model, asked, torch.arange(2), now)[..., 5:10]

    plain = logits(None)
    for changed in range(WIDTH):
        same = torch.isclose(plain, logits(changed), rtol=0, atol=1e-9).all(-1)
        assert torch.equal(same, (policy.block < policy.block[changed]).expand(2, -1)), changed
    assert not torch.isclose(plain, logits(None, policy.encode("g")[-1]), rtol=0, atol=1e-9).all(-1).any()


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("settings", [
    {}, {"steps": 4}, {"order": "peak", "threshold": 0.3}, {"growth": "ascending", "blocks": 2}, {"blocks": 1},
    {"order": "random", "after_end": True, "blocks": 7},
], ids=str)  # fmt: skip
@torch.no_grad()
def test_recomputed_is_sampled(family: str, settings: dict[str, Any]) -> None:
    """Alone and in a batch of other rows, whose padding differs."""
    for double, bound in ((True, 1e-9), (False, 1e-5)):
        policy = make(family, double, **settings)
        rollouts = roll(policy)
        assert (rollouts["logp_old"][rollouts["mask"]] < 0).any()
        for rows in (torch.arange(12), torch.tensor([5]), torch.tensor([9, 2, 0])):
            part = rollouts.rows(rows)
            found = policy.score(part, {"logp", "entropy"})
            for name in ("logp", "entropy"):
                assert float((found[name] - part[f"{name}_old"]).abs().max()) <= bound


@torch.no_grad()
def test_a_block_is_as_likely_whatever_comes_after() -> None:
    """Log-probs of the first block stay when the canvas behind it is another, which full attention does not grant."""
    policy = make(steps=3)
    assert policy.block is not None
    rollouts = roll(policy)
    before = policy.score(rollouts)["logp"]
    canvas = rollouts.media["canvas"].clone()
    canvas[:, 3:] = canvas[:, 3:].flip(0)
    rollouts.media["canvas"] = canvas
    after = policy.score(rollouts)["logp"]
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])


def test_supervised_places_are_those_of_one_block() -> None:
    """The mean over many seeds is the mean over blocks and shares: no block is left out, and none counts more."""
    policy = make(double=False)
    text = policy.encode_completion("abcdefg"[:WIDTH])
    seen: list[torch.Tensor] = []

    def look(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["input_ids"][:, 3:] == policy.mask_id)

    hook = policy.model.register_forward_pre_hook(look, with_kwargs=True)
    policy.sft_loss([policy.encode("ab")] * 200, [text[:WIDTH]] * 200, 3)
    hook.remove()
    hidden = seen[0]
    chosen = []
    for row in hidden[:, -WIDTH:].tolist():
        blocks = [row[:3], row[3:5], row[5:]]
        partial = [k for k, own in enumerate(blocks) if any(own)]
        assert all(all(own) for own in blocks[partial[0] + 1 :]) if partial else True  # behind the chosen one all hides
        chosen.append(partial[0] if partial else -1)
    assert {0, 1, 2} <= set(chosen)
    optimizer = torch.optim.Adam(policy.trainable_parameters(), 1e-2)
    losses = []
    for step in range(40):
        loss = policy.sft_loss([policy.encode("ab")] * 8, [text[:WIDTH]] * 8, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_a_model_that_looks_elsewhere_is_refused() -> None:
    policy = make()
    plain = policy.model.forward

    def deaf(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        return plain(input_ids=input_ids)

    policy.model.forward = deaf
    with torch.no_grad(), pytest.raises(PolicyError, match="no mask of who sees whom"):
        block_causal.check(policy.model, policy.mask_id, policy.pad_id)
    policy.model.config = ModernBertConfig(num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(PolicyError, match="a window of their own") as told:
        block_causal.check(policy.model, policy.mask_id, policy.pad_id)
    assert told.value.hint == "model.attention=full"
