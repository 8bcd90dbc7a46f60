"""Partial rollouts: nothing is lost, order and bookkeeping are right, and continuations are what scoring says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coterie.errors import RecipeError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.rollout.strategies.partial import partial
from coterie.rollouts import Prompt, Rollouts, Sampling

PROMPTS = [Prompt((1, 3 + i, 4), {"prompt": str(i)}, i) for i in range(8)]
SAMPLING = Sampling(max_tokens=24)


@pytest.fixture
def policy() -> CausalLM:
    made = CausalLM.load(ModelSpec(init=TinySpec(width=32, vocabulary="abcdefgh", context=32)))
    with torch.no_grad():
        made.model.get_output_embeddings().weight.mul_(8)
    return made


def call(piece: partial, policy: CausalLM, new: list[int], count: int, **changes: Any) -> Rollouts:
    seeds = [[100 * i + k for k in range(4)] for i in new]
    sampling = changes.pop("sampling", SAMPLING)
    return piece(policy, [PROMPTS[i] for i in new], seeds, sampling, True, count, PROMPTS.__getitem__)


def test_with_as_many_groups_as_asked_it_is_plain_sampling(policy: CausalLM) -> None:
    piece = partial(over=1.0)
    assert piece.to_draw(3) == 3
    made = call(piece, policy, [0, 1, 2], 3)
    plain = policy.rollout(PROMPTS[:3], [[100 * i + k for k in range(4)] for i in range(3)], SAMPLING, entropy=True)
    assert made.texts == plain.texts and not piece.waiting
    for name in ("tokens", "mask", "groups", "lengths", "truncated", "version", "prompt_index"):
        assert torch.equal(made[name], plain[name]), name
    for name in ("logp_old", "entropy_old"):
        assert torch.allclose(made[name], plain[name], atol=1e-5)


def test_the_unfinished_go_on_and_nothing_is_lost(policy: CausalLM) -> None:
    piece, drawn, seen = partial(over=2.0), 0, []
    for step in range(6):
        policy.version = step
        count = piece.to_draw(2)
        new = list(range(drawn, min(drawn + count, len(PROMPTS))))
        drawn += len(new)
        made = call(piece, policy, new, 2)
        assert len(made.prompts) <= 2 and len(made) == 4 * len(made.prompts)
        seen += [p.index for p in made.prompts]
        with torch.no_grad():  # the weights have not changed, so the whole rollout scores as it was captured
            scored = policy.score(made, {"logp", "entropy"})
        assert torch.allclose(scored["logp"], made["logp_old"], atol=1e-5)
        assert torch.allclose(scored["entropy"], made["entropy_old"], atol=1e-5)
        for row in range(len(made)):
            versions = made["version"][row][made["mask"][row]].tolist()
            assert versions == sorted(versions) and versions[-1] <= step
        if not piece.waiting and drawn == len(PROMPTS):
            break
    assert sorted(seen) == list(range(len(PROMPTS)))


def test_a_step_does_not_wait_for_the_others(policy: CausalLM) -> None:
    """Every rollout ends at once: two groups come back, and the two that ended with them keep their result."""
    end = torch.zeros(policy.model.config.vocab_size).index_fill(0, torch.tensor(policy.tokenizer.eos_token_id), 50.0)
    handle = policy.model.get_output_embeddings().register_forward_hook(lambda m, args, out: end.expand_as(out))
    piece = partial(over=2.0)
    made = call(piece, policy, [0, 1, 2, 3], 2)
    handle.remove()
    assert made["lengths"].tolist() == [1] * 8 and [p.index for p in made.prompts] == [0, 1]
    assert [index for index, _ in piece.waiting] == [2, 3]
    assert all(row.ended for _, rows in piece.waiting for row in rows)
    assert [p.index for p in call(piece, policy, [], 2).prompts] == [2, 3]


def test_state_survives_a_reload(policy: CausalLM) -> None:
    piece, again = partial(over=2.0), partial(over=2.0)
    call(piece, policy, [0, 1, 2, 3], 1)
    assert piece.waiting
    again.load_state_dict(piece.state_dict())
    a, b = (call(p, policy, [4], 2) for p in (piece, again))
    assert a.texts == b.texts and torch.equal(a["version"], b["version"]) and torch.equal(a["logp_old"], b["logp_old"])


def test_stop_strings_are_refused(policy: CausalLM) -> None:
    with pytest.raises(RecipeError, match="stop string"):
        call(partial(), policy, [0, 1], 1, sampling=Sampling(max_tokens=8, stop=("a",)))
