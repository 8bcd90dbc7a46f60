"""Contexts that are written anew: every decision is trained on under the tokens it was sampled after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from environments.worlds import Faulty, Spoken, Walk

from coterie.api import start
from coterie.credit import decayed_turn_norm
from coterie.environments import Episode, World
from coterie.errors import RecipeError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.recipe import resolve
from coterie.rollout.contexts import Moment, Window, Workspace, one_row_each
from coterie.rollout.episodes import play
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.tasks.base import Task

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="module")
def policy() -> CausalLM:
    torch.manual_seed(0)
    spec = TinySpec(vocabulary="0123456789+=-abcdef t<>u", layers=2, width=32, heads=4, context=256)
    made = CausalLM.load(ModelSpec(init=spec))
    made.tokenizer.chat_template = TEMPLATE
    with torch.no_grad():
        for p in made.trainable_parameters():
            p.mul_(4.0 if p.dim() > 1 else 1.0)
    return made


def played(policy: CausalLM, context: Any, *, chat: bool, prompts: int = 25, make: Any = None, tokens: int = 90) -> Any:
    """A table, and what the engine was asked and gave, turn by turn."""
    rows: list[dict[str, Any]] = [{"prompt": f"{k}+", "start": 0, "goal": k % 9 - 4 or 5} for k in range(prompts)]
    if chat:
        for row in rows:
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    asked = [Prompt(policy.encode(row["prompt"]), row, i) for i, row in enumerate(rows)]
    given: list[tuple[list[int], list[int]]] = []
    engine = policy.generate

    def watched(requests: Any, **how: Any) -> Any:
        made = engine(requests, **how)
        said = [made.tokens[i][made.mask[i]].tolist() for i in range(len(made.tokens))]
        given.extend(zip([list(r.prompt) for r in requests for _ in r.seeds], said, strict=True))
        return made

    policy.generate = watched  # type: ignore[method-assign]
    world = World(make or (Spoken if chat else Walk), turns=6, turn_tokens=4, context=context)
    try:
        seeds = [[100 * i + k for k in range(4)] for i in range(prompts)]
        return play(policy, asked, seeds, Sampling(max_tokens=tokens), world, entropy=True), given
    finally:
        policy.generate = engine  # type: ignore[method-assign]


def decisions(made: Rollouts) -> list[tuple[list[int], list[int]]]:
    """Each turn of each row: the tokens before it, and its own."""
    out = []
    for i in range(len(made)):
        prompt = list(made.prompts[int(made["groups"][i])].tokens)
        tokens, turn = made["tokens"][i].tolist(), made["turn"][i]
        for u in range(int(turn.max()) + 1):
            place = (turn == u).nonzero().squeeze(-1).tolist()
            assert place == list(range(place[0], place[-1] + 1))
            out.append((prompt + tokens[: place[0]], tokens[place[0] : place[-1] + 1]))
    return out


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("context", [Window(1, 3), Window(0, 1), Workspace()], ids=str)
def test_what_is_trained_on_is_what_was_sampled_after_what_was_read(policy: CausalLM, context: Any, chat: bool) -> None:
    made, given = played(policy, context, chat=chat)
    assert len(made) > 100 and sorted(decisions(made)) == sorted(given)
    with torch.no_grad():
        assert (policy.score(made)["logp"] - made["logp_old"]).abs().max() < 1e-4
    assert (made["logp_old"][~made["mask"]] == 0).all() and (made["lengths"] == made["mask"].sum(-1)).all()
    turns = (made["turn"].amax(-1) + 1).tolist()
    for i, (count, after) in enumerate(zip(turns, made["turns_after"].tolist(), strict=True)):
        episode = made.episodes[i]
        first = episode.turns - after - count
        assert made["step_rewards"][i, :count].tolist() == episode.rewards[first : first + count]
        assert len(made["state_key"][i, :count].unique()) == len(set(episode.states[first : first + count]))
        assert bool(made["truncated"][i]) == (not episode.done)
    assert sum(turns) == sum(e.turns for e in {id(e): e for e in made.episodes}.values())


def test_a_window_reads_the_last_turns_in_their_own_tokens(policy: CausalLM) -> None:
    whole, _ = played(policy, None, chat=False, prompts=2)
    made, given = played(policy, Window(1, 2), chat=False, prompts=2)
    assert "turns_after" not in whole and "turns_after" in made
    first = [(p, s) for p, s in given if len(p) == 3]
    assert len(first) == 8  # the first turn of each episode has nothing but its prompt to read
    for i in range(len(made)):
        begin = made["tokens"][i][: int(made["mask"][i].long().argmax())].tolist()
        if begin:  # the action of the row before, and what it was answered
            last = made["turn"][i - 1] == made["turn"][i - 1].max()
            at = int(last.long().argmax())
            assert begin == made["tokens"][i - 1][at : at + len(begin)].tolist()
            said = made["tokens"][i - 1][last].tolist()
            assert begin[: len(said)] == said and len(begin) == len(said) + 3


def test_a_workspace_holds_report_last_action_and_last_answer() -> None:
    episode = Episode(actions=["<think>hm</think><report>A</report>go"], observations=["1"])
    moment = Moment(episode, [], lambda text: list(text.encode()), lambda said: [0, len(said)])
    text = "<report>A</report>go"
    assert Workspace()(moment) == [[*text.encode(), 0, len(text)]]
    episode.actions.append("no opening</think>stop")
    assert bytes(Workspace()(moment)[0][:-2]) == b"<report>A</report>stop"  # the report stands until there is a new one
    episode.actions.append("<report>A, B</report><report>C</report>")
    assert bytes(Workspace()(moment)[0][:-2]) == b"<report>C</report>"
    episode.actions[:] = ["go"]
    assert bytes(Workspace()(moment)[0][:-2]) == b"go"
    for settings in ((2, 2), (-1, 3)):
        with pytest.raises(RecipeError):
            Window(*settings)


def test_tokens_are_for_what_is_read_so_that_an_episode_may_be_longer(policy: CausalLM) -> None:
    full, _ = played(policy, None, chat=False, tokens=16)
    made, _ = played(policy, Window(0, 1), chat=False, tokens=16)
    assert max(e.turns for e in full.episodes) < 6 == max(e.turns for e in made.episodes)
    tight, _ = played(policy, Window(1, 2), chat=False, tokens=9)
    assert (tight["lengths"] > 0).all()  # a segment without room is no row


def test_one_row_of_an_episode_for_evaluation_and_failures_in_all_rows(policy: CausalLM) -> None:
    made, _ = played(policy, Window(1, 3), chat=False, prompts=5)
    each = one_row_each(made)
    assert len(each) == 20 and len({id(e) for e in each.episodes}) == 20
    assert int(each["lengths"].sum()) == int(made["lengths"].sum())
    whole, _ = played(policy, None, chat=False, prompts=5)
    assert one_row_each(whole) is whole

    class Sometimes(Faulty):
        def reset(self, row: Any) -> str:
            out = super().reset(row)
            self.goal, self.left = (row["goal"], 2) if row["prompt"] != "3+" else (1, 2)
            return out

        def step(self, action: str) -> Any:
            self.left -= 1
            if self.left < 0 and self.goal == 1:
                raise ValueError("broken")
            return Walk.step(self, "b")

    made, _ = played(policy, Window(0, 1), chat=False, prompts=4, make=Sometimes)
    failed = [e.failed is not None for e in made.episodes]
    assert any(failed) and failed == [int(g) == 3 for g in made["groups"]]


def test_rounds_that_are_rows_are_worth_what_they_are_worth_in_a_row() -> None:
    """The catalogue's example: rewards 1 and 0, two turns and one."""
    want = decayed_turn_norm(
        torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long), torch.tensor([[0, 1], [0, -1]]),
        torch.tensor([[True, True], [True, False]]), gamma=0.9,
    )  # fmt: skip
    got = decayed_turn_norm(
        torch.tensor([1.0, 1.0, 0.0]), torch.zeros(3, dtype=torch.long), torch.zeros(3, 1, dtype=torch.long),
        torch.ones(3, 1, dtype=torch.bool), torch.tensor([1, 0, 0]), gamma=0.9,
    )  # fmt: skip
    assert torch.allclose(got.flatten(), want[[0, 0, 1], [0, 1, 0]])
    assert torch.allclose(got.flatten(), torch.tensor([0.593, 0.8154, -1.4084]), atol=1e-3)


def test_a_task_provides_the_column_of_its_context() -> None:
    assert "turns_after" in Task("t", [], [], world=World(Walk, context=Workspace())).provides
    assert "turns_after" not in Task("t", [], [], world=World(Walk)).provides
    assert "reading Window(keep=2, longest=4)" in World(Walk, context=Window()).described


TASK = """
from coterie.environments import Step, World, episode_return
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.rollout.contexts import Window
from coterie.tasks.base import Task


class Climb:
    def reset(self, row):
        self.at, self.goal = 0, row["goal"]

    def step(self, action):
        self.at += "a" in action
        done = self.at == self.goal
        return Step(f"{self.at}>", float(done), done, {"success": done})


@task()
def climb() -> Task:
    rows = [{"prompt": f"{goal}>", "goal": goal} for goal in (1, 2, 1, 2)]
    return Task(
        "climb", rows, rows[:2], rewards=[WeightedReward(episode_return, "return")], vocabulary="012345>ab",
        world=World(Climb, turns=5, turn_tokens=1, context=Window(0, 1)), script=lambda row, seen: "a",
    )
"""


def test_a_run_whose_episodes_have_several_rows(tmp_path: Path) -> None:
    (tmp_path / "climb.py").write_text(TASK, encoding="utf-8")
    settings = [
        f"task={tmp_path / 'climb.py'}:climb", "model={init: {layers: 1, width: 32, heads: 4, context: 32}}", "steps=2",
        "threads=1", "rollout.max_tokens=8", "rollout.group_size=8", "draw.prompts=2", "checkpoint.every=0",
        "log.rollouts_every=0",
        "evaluation={every: 0, prompts: 2, samples: 3, greedy: true}", "warm_start={steps: 2, batch: 4}",
    ]  # fmt: skip
    metrics = start(resolve(method="iter-research", overrides=settings), tmp_path / "run", quiet=True).metrics
    steps = [row for row in metrics if "reward/mean" in row]
    assert len(steps) == 2 and all(row["episode/turns"] > 1 for row in steps)
    assert any(row["eapo/decay"] < 1 for row in steps)  # a row knows how many turns lie behind it
    assert all(0 <= row["eval/greedy"] <= 1 and row["eval/length"] >= 1 for row in metrics if "eval/greedy" in row)
