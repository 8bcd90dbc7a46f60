from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from environments.worlds import Faulty, Later, Spoken, Walk

from coterie.environments import World, episode_return
from coterie.errors import PolicyError, RecipeError, RunError
from coterie.microbatches import microbatches
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.rollout.episodes import play
from coterie.rollouts import Prompt, Rollouts, Sampling

CHARACTERS = "0123456789+=-abcdef t<>u"
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="module")
def policy() -> CausalLM:
    torch.manual_seed(0)
    made = CausalLM.load(ModelSpec(init=TinySpec(vocabulary=CHARACTERS, layers=2, width=32, heads=4, context=256)))
    with torch.no_grad():
        for p in made.trainable_parameters():
            p.mul_(4.0 if p.dim() > 1 else 1.0)
    return made


def asked(policy: CausalLM, goals: list[int], chat: bool = False) -> list[Prompt]:
    rows: list[dict[str, Any]] = [{"prompt": f"{g}+", "start": 0, "goal": g} for g in goals]
    if chat:
        policy.tokenizer.chat_template = TEMPLATE
        for row in rows:
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    return [Prompt(policy.encode(row["prompt"]), row, i) for i, row in enumerate(rows)]


def seeds(goals: list[int], group: int = 4) -> list[list[int]]:
    return [[100 * i + k for k in range(group)] for i in range(len(goals))]


SAMPLING = Sampling(max_tokens=64)


@pytest.mark.parametrize("world", [World(Walk, turns=5, turn_tokens=3), World(Later, turns=5, turn_tokens=3)])
def test_every_turn_is_appended_and_only_actions_are_decisions(policy: CausalLM, world: World) -> None:
    goals = [2, -1, 7]
    made = play(policy, asked(policy, goals), seeds(goals), SAMPLING, world, entropy=True)
    for i, episode in enumerate(made.episodes):
        tokens, mask, turn = (made[n][i].tolist() for n in ("tokens", "mask", "turn"))
        said = ["" for _ in episode.actions]
        for t, on, number in zip(tokens, mask, turn, strict=True):
            assert (number >= 0) == on
            if on:
                said[number] += policy.decode([t])
        assert said == episode.actions
        line = policy.decode([t for t, n in zip(tokens, turn, strict=True) if t or n >= 0])
        want = "".join(
            a + (str(o) if k + 1 < episode.turns else "")
            for k, (a, o) in enumerate(zip(episode.actions, episode.observations, strict=True))
        )
        assert line == want == made.texts[i]
        at, states = 0, []
        for action in episode.actions:
            states.append(at)
            at += 1 if "a" in action else -1
        assert episode.states == [str(s) for s in states] and episode.success == (at == goals[i // 4])
        assert made["step_rewards"][i, : episode.turns].tolist() == episode.rewards
        keys = made["state_key"][i]
        assert len({int(k) for k in keys[: episode.turns]}) == len(set(states)) and (keys[episode.turns :] == -1).all()
        assert bool(made["truncated"][i]) == (not episode.done)
    assert (made["logp_old"][~made["mask"]] == 0).all() and (made["lengths"] == made["mask"].sum(-1)).all()
    again = play(policy, asked(policy, goals[1:]), seeds(goals)[1:], SAMPLING, world)
    assert [e.actions for e in again.episodes] == [e.actions for e in made.episodes[4:]]


def test_the_tokens_trained_on_are_those_sampled_with_a_chat_template(policy: CausalLM) -> None:
    """Over 200 random episodes: what the engine gave is, in order, what the table's decisions are; and their recomputed
    log-probs are those captured while sampling."""
    goals = [(k % 9) - 4 or 5 for k in range(50)]
    given: list[list[int]] = []
    engine = policy.generate

    def watched(requests: Any, **how: Any) -> Any:
        made = engine(requests, **how)
        given.extend(made.tokens[i][made.mask[i]].tolist() for i in range(len(made.tokens)))
        return made

    policy.generate = watched  # type: ignore[method-assign]
    try:
        made = play(
            policy, asked(policy, goals, chat=True), seeds(goals), SAMPLING, World(Spoken, turns=4, turn_tokens=5)
        )
    finally:
        policy.generate = engine  # type: ignore[method-assign]
    assert len(made) == 200 and max(e.turns for e in made.episodes) == 4
    trained = [
        made["tokens"][i][made["turn"][i] == turn].tolist()
        for turn in range(4)
        for i in range(len(made))
        if (made["turn"][i] == turn).any()
    ]
    assert trained == given
    with torch.no_grad():
        again = policy.score(made)["logp"]
    assert (again - made["logp_old"]).abs().max() < 1e-4
    eos = policy.tokenizer.eos_token_id
    for i in range(len(made)):  # an end of turn that was sampled is not written a second time
        row = made["tokens"][i].tolist()
        assert all(not (a == b == eos) for a, b in pairwise(row))


def test_observations_have_no_gradient(policy: CausalLM) -> None:
    """Decisions that come before an observation do not see it, and it is no decision: poisoning it changes neither the
    gradient of what came before nor any loss of its own."""
    goals = [3, 4]
    made = play(policy, asked(policy, goals), seeds(goals), SAMPLING, World(Walk, turns=3, turn_tokens=2))
    assert (made["turn"] == 1).any()
    poisoned = torch.where(made["mask"], made["tokens"], 5)

    def gradient(tokens: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        table = made.with_columns(tokens=tokens, mask=mask)
        logp = policy.score(table)["logp"]
        assert (logp[~mask] == 0).all()
        return list(torch.autograd.grad(logp.sum(), policy.trainable_parameters()))

    first = made["turn"] == 0
    for a, b in zip(gradient(made["tokens"], first), gradient(poisoned, first), strict=True):
        assert torch.equal(a, b)
    later = zip(gradient(made["tokens"], made["mask"]), gradient(poisoned, made["mask"]), strict=True)
    assert not all(torch.equal(a, b) for a, b in later)  # they are context of what follows


def broken(kind: int) -> int:
    return 10 + kind


@pytest.mark.parametrize("timeout", [None, 3.0])
def test_environments_that_break_down_spoil_their_own_episodes_alone(policy: CausalLM, timeout: float | None) -> None:
    kinds = [1, 2, 3] if timeout is None else [1, 4, 5]
    goals = [6, broken(kinds[0]), 7, broken(kinds[1]), broken(kinds[2]), -2, 8]
    world = World(Faulty, turns=3, turn_tokens=2, timeout=timeout)
    made = play(policy, asked(policy, goals), seeds(goals, 2), SAMPLING, world)
    rewards = episode_return(made.texts, made.episodes)
    for i, episode in enumerate(made.episodes):
        assert (episode.failed is not None) == (goals[i // 2] > 10) and (rewards[i] is None) == (goals[i // 2] > 10)
    healthy = play(policy, asked(policy, goals), seeds(goals, 2), SAMPLING, World(Walk, turns=3, turn_tokens=2))
    for i in range(len(made)):
        if goals[i // 2] <= 10:
            assert made.episodes[i].actions == healthy.episodes[i].actions
            n = int(made["mask"][i].sum())
            assert torch.equal(made["logp_old"][i][made["mask"][i]], healthy["logp_old"][i][healthy["mask"][i]][:n])
    said = {e.failed for e in made.episodes if e.failed}
    assert any("ValueError: broken" in s for s in said)
    if timeout is not None:
        assert any("timed out" in s for s in said) and any("ended its process" in s for s in said)
    with pytest.raises(RunError, match="episodes failed"):
        play(policy, asked(policy, [11, 12]), seeds([11, 12]), SAMPLING, World(Faulty, turns=3))


def test_messages_need_conversations_and_settings_sense(policy: CausalLM) -> None:
    with pytest.raises(PolicyError, match="prompt is plain text"):
        play(policy, asked(policy, [3]), seeds([3]), SAMPLING, World(Spoken, turns=3, turn_tokens=2))
    with pytest.raises(RecipeError, match="turns"):
        World(Walk, turns=0)


def test_rows_and_concat_carry_episodes(policy: CausalLM) -> None:
    goals = [2, 3]
    made = play(policy, asked(policy, goals), seeds(goals), SAMPLING, World(Walk, turns=3, turn_tokens=2))
    both = Rollouts.concat([made, made.rows(torch.tensor([1, 5]))])
    assert both.episodes[8:] == [made.episodes[1], made.episodes[5]] and len(both) == 10


def test_a_turn_that_ran_out_of_tokens_has_a_place_too(policy: CausalLM) -> None:
    """What is read by turn has a value for every decision, also where an action was cut off and met no world."""
    cut = 0
    for tokens in range(4, 9):
        made = play(policy, asked(policy, [9]), [[1]], Sampling(max_tokens=tokens), World(Walk, turns=4, turn_tokens=3))
        last, states = int(made["turn"].max()), len(made.episodes[0].states)
        assert made["step_rewards"].shape[1] == made["state_key"].shape[1] == last + 1
        assert (made["state_key"][:, states:] == -1).all() and (made["step_rewards"][:, states:] == 0).all()
        cut += states == last
    assert cut


def test_microbatches_count_what_the_world_said(policy: CausalLM) -> None:
    goals = [2, 3]
    made = play(policy, asked(policy, goals), seeds(goals), SAMPLING, World(Walk, turns=3, turn_tokens=2))
    end = [int(m.nonzero().max()) + 1 for m in made["mask"]]
    cost = [len(made.prompts[i // 4].tokens) + n for i, n in enumerate(end)]
    assert max(end) > int(made["lengths"].max())
    for budget in (max(cost), 2 * max(cost)):
        for part in microbatches(made, budget):
            assert max(cost[i] for i in part.tolist()) * len(part) <= budget


def test_episodes_beyond_the_processes_are_played_after_the_others(policy: CausalLM) -> None:
    """Groups stay whole, the rows are those of one go, and no more processes were there than are allowed."""
    goals = [2, -1, 3]
    world = World(Walk, turns=2, turn_tokens=2, timeout=60.0, processes=2)
    made = play(policy, asked(policy, goals), seeds(goals, 2), SAMPLING, world)
    once = play(policy, asked(policy, goals), seeds(goals, 2), SAMPLING, World(Walk, turns=2, turn_tokens=2))
    assert made["groups"].tolist() == once["groups"].tolist()
    assert [e.actions for e in made.episodes] == [e.actions for e in once.episodes]
    assert len(world.idle) == 2
    for worker in world.idle:
        worker.close()
