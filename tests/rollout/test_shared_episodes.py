"""Episodes of several agents: who acts when, what each reads, what each is paid, and what becomes of failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from environments.shared import Desk

from coterie.environments import Step, World
from coterie.environments.dilemma import Dilemma
from coterie.errors import RunError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.rollout import shared_episodes
from coterie.rollout.shared_episodes import play_alone, play_together, prompts_for
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.tasks.dilemma import dilemma

VOCABULARY = "abcdlrmh0123456789=?>"
DESK = World(Desk, turns=6, turn_tokens=1, agents=("main", "helper"))


def policy(seed: int = 0) -> CausalLM:
    spec = TinySpec(vocabulary=VOCABULARY, layers=1, width=16, heads=2, context=40)
    return CausalLM.load(ModelSpec(init=spec, seed=seed))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Actions in the order in which they are asked for, in place of sampled ones."""
    script: list[str] = []
    real = shared_episodes.go_on

    def go_on(who: Any, prompts: Any, forks: Sequence[Any], *rest: Any, **more: Any) -> Any:
        made = real(who, prompts, forks, *rest, **more)
        for line in made:
            line.tokens[-1] = who.encode_completion(script.pop(0))[0]
        return made

    monkeypatch.setattr(shared_episodes, "go_on", go_on)
    return script


def play(world: World, rows: list[dict[str, Any]], group: int = 1, tokens: int = 30) -> dict[str, Rollouts]:
    who = {name: policy(i) for i, name in enumerate(world.agents)}
    prompts = {name: prompts_for(p, name, [(r, i) for i, r in enumerate(rows)]) for name, p in who.items()}
    seeds = [[7 * g + k for k in range(group)] for g in range(len(rows))]
    return play_together(who, prompts, seeds, Sampling(max_tokens=tokens), world)


ROW = {"prompt": "m>", "prompts": {"helper": "h>"}}


def read(table: Rollouts, row: int) -> tuple[str, str]:
    """The whole line behind the prompt, and what of it was decided."""
    p, tokens = policy(), table["tokens"][row]
    n = int(table["mask"][row].nonzero()[-1]) + 1
    return p.decode(tokens[:n].tolist()), p.decode(tokens[table["mask"][row]].tolist())


def test_calls_begin_lines_of_their_own_and_late_rewards_reach_all_of_them(scripted: list[str]) -> None:
    scripted += ["a", "b", "a", "c", "d"]
    tables = play(DESK, [{**ROW, "hello": "0"}])
    main, helper = tables["main"], tables["helper"]
    assert [read(main, 0)] == [("0a=1>a=0>d", "aad")]
    assert [read(helper, i) for i in range(2)] == [("1?b", "b"), ("2?c", "c")]
    assert main["step_rewards"][0, :3].tolist() == [0.5, 0.5, 2.0]
    assert helper["step_rewards"][:, 0].tolist() == [1.0 + 2.0, 2.0]
    assert main["other_rewards"][0, :3].tolist() == [1.0, 0.0, 2.0]  # until its call was answered
    assert helper["other_rewards"][:, 0].tolist() == [0.5, 0.5]
    assert helper["groups"].tolist() == [0, 0] and helper["episode"].tolist() == [0, 0] == [
        *main["episode"].tolist(),
        0,
    ]
    assert [e.success for e in helper.episodes] == [True, True] and main.episodes[0].success
    assert not main["truncated"].any() and not helper["truncated"].any()
    assert main.prompts[0].row["agent"] == "main" and helper.prompts[0].row["prompt"] == "h>"
    assert main["turn"][0][main["mask"][0]].tolist() == [0, 1, 2]


class Quiz:
    """The helper is asked twice in a row, then both are told what it earned."""

    def reset(self, row: dict[str, Any]) -> dict[str, str]:
        self.right: list[float] = []
        return {"main": ""}

    def step(self, actions: dict[str, str]) -> Any:
        if "main" in actions:
            return {"helper": Step("?")}
        self.right.append(float(actions["helper"] == "b"))
        told = Step("", self.right[-1], True)
        if len(self.right) < 2:
            return {"helper": [told, Step("?")]}
        return {"helper": told, "main": Step("", sum(self.right), True)}


def test_an_agent_whose_line_ends_may_be_called_again_at_once(scripted: list[str]) -> None:
    scripted += ["a", "c", "b"]
    tables = play(World(Quiz, turns=3, turn_tokens=1, agents=("main", "helper")), [ROW])
    main, helper = tables["main"], tables["helper"]
    assert [read(helper, i) for i in range(2)] == [("?c", "c"), ("?b", "b")]
    assert helper["step_rewards"][:, 0].tolist() == [0.0, 1.0] and main["step_rewards"][0, 0] == 1.0
    assert main["other_rewards"][0, 0] == 1.0  # while it waited
    assert helper["episode"].tolist() == [0, 0] and not helper["truncated"].any() and not main["truncated"].any()


def test_an_agent_that_was_not_called_has_no_table(scripted: list[str]) -> None:
    scripted += ["d"]
    assert play(DESK, [ROW]).keys() == {"main"}


def test_rounds_that_are_up_truncate_what_is_under_way(scripted: list[str]) -> None:
    scripted += ["a", "b", "a"]
    tables = play(replace(DESK, turns=3), [ROW])
    assert tables["main"]["truncated"].tolist() == [True] and tables["helper"]["truncated"].tolist() == [False]
    assert tables["main"].episodes[0].actions == ["a", "a"] and len(tables["helper"]) == 1


def test_where_a_line_is_out_of_room_the_episode_ends(scripted: list[str]) -> None:
    scripted += ["a", "b"]
    tables = play(DESK, [ROW], tokens=4)  # a=1> leaves no room for another action
    assert tables["main"]["truncated"].tolist() == [True] and tables["main"].episodes[0].actions == ["a"]


def test_a_world_that_breaks_down_fails_its_own_episode_for_all(scripted: list[str]) -> None:
    scripted += ["a", "a", "a", "b", "b", "d", "d"]
    tables = play(DESK, [{**ROW, "fails": 2}, {**ROW, "fails": -2}, ROW])
    main, helper = tables["main"], tables["helper"]
    assert [e.failed is not None for e in main.episodes] == [True, True, False]
    assert "broken" in str(main.episodes[0].failed) and "'nobody'" in str(main.episodes[1].failed)
    assert helper["episode"].tolist() == [0, 2] and helper["groups"].tolist() == [0, 1]
    assert [p.index for p in helper.prompts] == [0, 2]  # the second prompt has no call
    assert [e.failed is not None for e in helper.episodes] == [True, False]


def test_players_act_at_once_and_see_what_the_other_earned(scripted: list[str]) -> None:
    scripted += ["c", "d", "d", "c", "d", "d"]
    task = dilemma(rounds=3, train=1, held_out=1)
    assert task.world is not None
    tables = play(task.world, list(task.train))
    left, right = tables["left"], tables["right"]
    assert left["step_rewards"][0].tolist()[:3] == right["other_rewards"][0].tolist()[:3] == [0.0, 5.0, 1.0]
    assert right["step_rewards"][0].tolist()[:3] == left["other_rewards"][0].tolist()[:3] == [5.0, 0.0, 1.0]
    assert read(left, 0)[0] == "cd>dc>d" and read(right, 0)[0] == "dc>cd>d"


def test_lines_are_scored_as_they_were_sampled_and_do_not_depend_on_company() -> None:
    """Log-probs captured while sampling are the trainer's; an episode is the same whoever is played beside it."""
    task = dilemma(rounds=3, train=3, held_out=1)
    assert task.world is not None
    tables = play(task.world, list(task.train), group=2)
    for i, (name, table) in enumerate(tables.items()):
        again = policy(i).score(table, {"logp"})["logp"].detach()
        assert torch.allclose(again[table["mask"]], table["logp_old"][table["mask"]], atol=1e-5), name
    alone = play(task.world, list(task.train[:1]), group=2)
    for name, table in alone.items():
        assert torch.equal(table["tokens"], tables[name]["tokens"][:2])


def test_in_self_play_groups_never_mix_agents() -> None:
    task = dilemma(rounds=2, train=3, held_out=1)
    assert task.world is not None
    one = policy()
    prompts = [Prompt(one.encode(r["prompt"]), r, i) for i, r in enumerate(task.train)]
    out = play_alone(one, prompts, [[1, 2]] * 3, Sampling(max_tokens=12), task.world)
    assert len(out) == 12 and len(out.prompts) == 6
    owners = {(g, out.prompts[g].row["agent"], out.prompts[g].index) for g in out["groups"].tolist()}
    assert len(owners) == 6 and out["groups"].unique(return_counts=True)[1].tolist() == [2] * 6
    left = torch.tensor([out.prompts[g].row["agent"] == "left" for g in out["groups"].tolist()])
    assert torch.equal(out["episode"][left], out["episode"][~left])
    assert torch.equal(out["step_rewards"][left], out["other_rewards"][~left])


def test_a_conversation_cannot_be_told_something_before_it_acts() -> None:
    who = {name: policy() for name in DESK.agents}
    row = {"prompt": [{"role": "user", "content": "m"}], "hello": "0"}
    prompts = {name: [Prompt(p.encode("m>"), row)] for name, p in who.items()}
    with pytest.raises(RunError, match="its prompt is a conversation"):
        play_together(who, prompts, [[1]], Sampling(max_tokens=30), DESK)


def test_a_defection_is_anything_but_c() -> None:
    world = Dilemma(2, (3.0, 0.0, 5.0, 1.0))
    world.reset({})
    first = world.step({"left": "c", "right": "c"})
    assert first["left"].reward == 3 and first["left"].info["success"] and not first["left"].done
    last = world.step({"left": "", "right": "c"})
    assert (last["left"].reward, last["right"].reward, last["left"].done) == (5, 0, True)
    assert last["right"].observation == "d>" and not last["right"].info["success"]
