"""Partial rollouts: nothing is lost, order and bookkeeping are right, and continuations are what scoring says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.april import Oven

from coterie.errors import RecipeError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.rollout.engines.base import Generation, Progress
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


@pytest.mark.reduction("april")
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


class Clockwork:
    """Stands in for a policy: rollout k of prompt p ends after LENGTHS[p][k] tokens; all rows take a token a tick."""

    device = torch.device("cpu")
    version = 0

    def __init__(self, lengths: list[list[int]]) -> None:
        self.lengths = lengths

    def decode(self, ids: Any) -> str:
        return str(ids)

    def generate(self, requests: Any, *, entropy: bool, until: Any) -> Generation:
        count, width = len(requests), max(r.sampling.max_tokens for r in requests)
        tokens, mask = torch.zeros(count, width, dtype=torch.int64), torch.zeros(count, width, dtype=torch.bool)
        ended = torch.zeros(count, dtype=torch.bool)
        places: dict[int, int] = {}
        left = []
        for r in requests:  # a continuation's prompt holds its own tokens, which say which rollout it is
            prompt, done = r.prompt[0], len(r.prompt) - 2
            which = r.prompt[2] if done else places.setdefault(prompt, 0)
            if not done:
                places[prompt] += 1
            left.append((self.lengths[prompt][which] - done, which))
        t = 0
        while not ended.all() and not until(Progress(ended, tokens, mask)):
            for i, r in enumerate(requests):
                if not ended[i]:
                    tokens[i, t], mask[i, t] = left[i][1], True
                    ended[i] = t + 1 >= min(left[i][0], r.sampling.max_tokens)
            t += 1
        logp = torch.zeros(count, width)
        stopped = torch.tensor([left[i][0] <= requests[i].sampling.max_tokens for i in range(count)]) & ended
        return Generation(tokens, mask, logp, ~stopped, logp if entropy else None, ended)


@pytest.mark.oracle("april")
@given(
    st.lists(st.lists(st.integers(1, 20), min_size=2, max_size=2), min_size=8, max_size=8),
    st.integers(1, 3),
    st.sampled_from([1.0, 1.5, 2.0, 3.0]),
)
def test_groups_come_back_as_in_the_oracle(lengths: list[list[int]], count: int, over: float) -> None:
    policy, piece, oven, drawn = Clockwork(lengths), partial(over=over), Oven(cap=16), 0
    for step in range(8):
        policy.version = step
        new = list(range(drawn, min(drawn + piece.to_draw(count), len(lengths))))
        drawn += len(new)
        if not new and not piece.waiting:
            break
        prompts = [Prompt((i, 0), {}, i) for i in new]
        made = piece(
            policy,
            prompts,
            [[0, 1] for _ in new],
            Sampling(max_tokens=16),
            False,
            count,
            lambda i: Prompt((i, 0), {}, i),
        )
        want = oven.step(step, {i: lengths[i] for i in new}, count)
        assert [p.index for p in made.prompts] == want
        for group, prompt in enumerate(want):
            rows = (made["groups"] == group).nonzero().flatten().tolist()
            for k, row in enumerate(rows):
                versions = made["version"][row][made["mask"][row]].tolist()
                assert versions == oven.taken[prompt][k]
                assert bool(made["truncated"][row]) == (lengths[prompt][k] > 16)
