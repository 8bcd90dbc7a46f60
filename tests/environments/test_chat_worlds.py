"""Conversations in a world, with a byte-level BPE tokenizer and a chat template of the kind that Qwen models have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from environments.worlds import Spoken

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.environments import World
from coterie.loop import credit, select
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.recipe import resolve
from coterie.rollout.engines.base import Request
from coterie.rollout.episodes import play
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.update import update
from tests.e2e.conftest import TINY

TEMPLATE = """\
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou walk on a line.<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
  {%- if message.role == 'tool' %}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
    {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
  {%- else %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
TEXT = "a walk on a line: aab, baa, abba; at 0 at 1 at -1 at 2 <tool_response> </tool_response> go ahead and back again"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("chat")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([TEXT] * 4, trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    ))  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=special[0], eos_token=special[2], chat_template=TEMPLATE
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=2, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from uniform, so that log-probs say something
        model.lm_head.weight[2] = model.lm_head.weight[5]  # the end of a turn is not rare
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return CausalLM.load(ModelSpec(name=str(folder)))


def test_sampled_ids_are_trained_ids_over_200_episodes(policy: CausalLM) -> None:
    """What the engine was given and gave is, token by token, what is trained on; re-tokenising the text is not."""
    rows = [{"prompt": [{"role": "user", "content": f"go to {k}"}], "start": 0, "goal": 1 + k % 3} for k in range(50)]
    prompts = [Prompt(policy.encode(row["prompt"]), row, i) for i, row in enumerate(rows)]
    seeds = [[4 * i + k for k in range(4)] for i in range(50)]
    asked: list[Request] = []
    given: list[list[int]] = []
    engine = policy.generate

    def watched(requests: Sequence[Request], **how: Any) -> Any:
        made = engine(requests, **how)
        asked.extend(r for r in requests for _ in r.seeds)
        given.extend(made.tokens[i][made.mask[i]].tolist() for i in range(len(made.tokens)))
        return made

    policy.generate = watched  # type: ignore[method-assign]
    try:
        made = play(policy, prompts, seeds, Sampling(max_tokens=240), World(Spoken, turns=5, turn_tokens=6))
    finally:
        policy.generate = engine  # type: ignore[method-assign]
    assert len(made) == 200 and sum(e.turns > 2 for e in made.episodes) > 100

    seen = iter(zip(asked, given, strict=True))
    retokenised = 0
    for turn in range(5):
        for i in range(len(made)):
            mine = (made["turn"][i] == turn).nonzero().squeeze(-1).tolist()
            if not mine:
                continue
            request, said = next(seen)
            assert made["tokens"][i, mine].tolist() == said
            assert request.prompt == (*prompts[i // 4].tokens, *made["tokens"][i, : mine[0]].tolist())
            retokenised += list(policy.encode_completion(policy.decode(said))) != [t for t in said if t != 2]
    assert next(seen, None) is None and retokenised > 100

    with torch.no_grad():
        again = policy.score(made)["logp"]
    assert (again - made["logp_old"]).abs().max() < 1e-4

    end, start = policy.tokenizer.eos_token_id, policy.tokenizer.convert_tokens_to_ids("<|im_start|>")
    for i, episode in enumerate(made.episodes):  # each turn's end is written once, and what is heard is as rendered
        line, last = made["tokens"][i].tolist(), int((made["turn"][i] >= 0).nonzero().max())
        chosen = (made["turn"][i] >= 0).tolist()
        for t in range(last):
            if chosen[t] and not chosen[t + 1]:
                heard = policy.tokenizer.decode(line[t + 1 : line.index(start, t + 1)])
                assert heard == ("\n" if line[t] == end else "<|im_end|>\n")
        said = episode.observations[0]["content"] if episode.turns > 1 else ""
        assert f"<|im_start|>user\n<tool_response>\n{said}\n</tool_response><|im_end|>\n" in policy.tokenizer.decode(
            line
        ) or (episode.turns <= 1)


FAR = 1e30


@pytest.mark.parametrize("method", ["grpo", "dapo", "gspo", "cispo", "grpo+kl", "reinforce++", "gigpo", "grpo+tis"])
def test_poisoned_observations_have_no_influence(method: str) -> None:
    """What stands in any column where the world spoke is not read: with other values there, an update gives the same
    weights bit for bit. So it does with other words of the world, for what was decided before they were said.
    """
    world = Path(__file__).parents[1] / "e2e/walk.py"
    tiny = [s for s in TINY if not s.startswith(("task=", "evaluation.", "rollout.max", "optimizer"))]

    def updated(poison: bool, *, first_turn: bool) -> tuple[list[torch.Tensor], Rollouts]:
        recipe = resolve(method=method, overrides=[
            *tiny, f"task={world}:walk", "rollout.max_tokens=24", "optimizer.lr=1e-1", "draw.prompts=2",
        ])  # fmt: skip
        run = build(recipe)
        batch = collect(run, 0, Clock())
        assert batch is not None
        batch = select(run, credit(run, batch, 0, Clock()), 0, Clock())
        observed = ~batch["mask"]
        assert bool((observed & (batch["turn"].flip(-1).cummax(-1)[0].flip(-1) >= 0)).any())  # not padding alone
        if first_turn:
            weights = batch["weights"] if batch["weights"].dim() == 2 else batch["weights"].unsqueeze(-1)
            batch = batch.with_columns(weights=weights * (batch["turn"] == 0))
        if poison:
            new = {n: batch[n].masked_fill(observed, FAR) for n in ("logp_old", "entropy_old") if n in batch}
            if batch["advantages"].dim() == 2:
                new["advantages"] = batch["advantages"].masked_fill(observed, FAR)
            if first_turn:
                new["tokens"] = batch["tokens"].masked_fill(observed, 7)
            batch = batch.with_columns(**new)
        run.first_update = False
        before = [p.detach().clone() for p in run.policy.trainable_parameters()]
        update(run, batch, 0, Clock())
        after = [p.detach().clone() for p in run.policy.trainable_parameters()]
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return after, batch

    for first_turn in (False, True):
        clean, _ = updated(False, first_turn=first_turn)
        spoiled, _ = updated(True, first_turn=first_turn)
        assert all(torch.equal(a, b) for a, b in zip(clean, spoiled, strict=True))


def test_words_of_the_world_are_predicted_by_nobody(policy: CausalLM) -> None:
    """No hidden state is scored but those that decisions were drawn from, and their log-probs alone are not 0."""
    rows = [{"prompt": [{"role": "user", "content": "go"}], "start": 0, "goal": 9}]
    prompts = [Prompt(policy.encode(row["prompt"]), row, i) for i, row in enumerate(rows)]
    made = play(policy, prompts, [[1, 2, 3]], Sampling(max_tokens=200), World(Spoken, turns=3, turn_tokens=4))
    scored: list[int] = []
    hidden = policy._hidden

    def counted(*args: Any) -> Any:
        found = hidden(*args)
        scored.append(len(found[0]))
        return found

    policy._hidden = counted  # type: ignore[method-assign]
    try:
        logp = policy.score(made)["logp"]
    finally:
        policy._hidden = hidden  # type: ignore[method-assign]
    assert scored == [int(made["mask"].sum())] and torch.equal(logp != 0, made["mask"])
