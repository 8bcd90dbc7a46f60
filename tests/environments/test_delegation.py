"""A main agent and its sub-agents: who is asked, who is paid for what, and a short run of all three."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.api import start
from coterie.build import build
from coterie.cli.commands import fine_tune
from coterie.cli.demo import RECIPES
from coterie.environments.delegation import Delegation
from coterie.environments.scripted import lines_of
from coterie.errors import RecipeError
from coterie.evaluator import accuracy
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.recipe import resolve
from coterie.tasks.base import validate
from coterie.tasks.delegation import delegation
from coterie.warm_start import warm_start

ROW = {"prompt": "bC>", "wanted": "bC", "answer": "3", "cards": {"left": {"a": "0", "b": "2"}, "right": {"C": "1"}}}


def play(moves: list[tuple[str, str]]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Answers to each move of one agent, and what every agent has earned."""
    world, answers, earned = Delegation(ask=0.25, share=0.5), [], {"main": 0.0, "left": 0.0, "right": 0.0}
    assert world.reset(ROW) == {"main": ""}
    for name, said in moves:
        answers.append(world.step({name: said}))
        for who, step in answers[-1].items():
            earned[who] += step.reward
    return answers, earned


def test_who_has_the_letter_is_asked_and_the_end_pays_all() -> None:
    answers, earned = play([("main", "b"), ("left", "2"), ("main", "C"), ("right", "0"), ("main", "3")])
    assert answers[0].keys() == {"left"} and answers[0]["left"].observation == "b>" and not answers[0]["left"].done
    assert answers[1]["left"].done and answers[1]["left"].info["success"]
    assert answers[1]["main"].observation == "2>" and not answers[1]["main"].done
    assert answers[2].keys() == {"right"} and not answers[3]["right"].info["success"]
    assert answers[3]["main"].observation == "0>"  # what was said, right or wrong
    assert answers[4]["main"].done and answers[4]["main"].info["success"]
    assert earned == {"main": 1.5, "left": 1.5, "right": 0.5}


def test_only_what_is_wanted_and_new_is_paid_and_a_wrong_end_pays_nobody() -> None:
    moves = [("main", "a"), ("left", "0"), ("main", "b"), ("left", "2"), ("main", "b"), ("left", "1"), ("main", "")]
    answers, earned = play(moves)
    assert answers[6]["main"].done and not answers[6]["main"].info["success"]
    assert earned == {"main": 0.25, "left": 2.0, "right": 0.0}


def test_rows_are_whole_distinct_and_held_out() -> None:
    task = delegation(train=200, held_out=50)
    keys = [(row["prompt"], str(row["cards"])) for row in (*task.train, *task.held_out)]
    assert len(set(keys)) == 250 and task.train == delegation(train=200, held_out=50).train
    assert task.train != delegation(train=200, held_out=50, seed=1).train
    for row in task.train:
        known = row["cards"]["left"] | row["cards"]["right"]
        assert row["answer"] == str(sum(int(known[letter]) for letter in row["wanted"]))
        assert row["prompt"] == row["wanted"] + ">" and row["wanted"][0] in row["cards"]["left"]
        assert row["prompts"]["right"] == "".join(k + v for k, v in row["cards"]["right"].items()) + ">"
        assert set(row["prompt"] + "".join(row["prompts"].values()) + row["answer"]) <= set(task.vocabulary or "")
    with pytest.raises(RecipeError, match="2 calls or more"):
        delegation(calls=1)


def test_each_agent_imitates_its_own_lines_and_what_it_was_told_carries_no_loss() -> None:
    task = delegation(train=3, held_out=1)
    assert task.world is not None and task.script is not None and task.vocabulary is not None
    report = validate(task)
    assert report.ok and report.rows == report.corrupted == 4
    row, policy = task.train[0], CausalLM.load(ModelSpec(init=TinySpec(vocabulary=task.vocabulary, width=16, heads=2)))
    said: dict[str, list[tuple[str, str, str]]] = {}
    for name in ("main", "left", "right"):
        for own, tokens, decided in lines_of(policy, task.world, row, task.script, name):
            acted = policy.decode([t for t, d in zip(tokens, decided, strict=True) if d])
            said.setdefault(own["agent"], []).append((own["prompt"], policy.decode(tokens), acted))
    (a, b), cards, answer = row["wanted"], row["cards"], row["answer"]
    one, other = cards["left"][a], cards["right"][b]
    assert said["main"] == [(f"{a}{b}>", f"{a}{one}>{b}{other}>{answer}", f"{a}{b}{answer}")]
    assert said["left"] == [(row["prompts"]["left"], f"{a}>{one}", one)]
    assert said["right"] == [(row["prompts"]["right"], f"{b}>{other}", other)]
    assert len(lines_of(policy, task.world, row, task.script, "")) == 3


SMALL = [
    "steps=2", "warm_start.steps=1", "model.init.width=16", "model.init.layers=1", "draw.prompts=8",
    "rollout.group_size=8", "evaluation={every: 0, prompts: 8, samples: 1, greedy: false}", "log.rollouts_every=0",
    "checkpoint.every=0",
]  # fmt: skip


def test_the_recipe_trains_all_of_them(tmp_path: Path) -> None:
    recipe = resolve(file=RECIPES / "delegation.yaml", overrides=SMALL)
    assert recipe.method == "m-grpo" and set(recipe.policies) == {"main", "left", "right"}
    result = start(recipe, tmp_path / "run", quiet=True)
    last = result.last
    for name in recipe.policies:
        losses = [row[f"agent/{name}/loss/total"] for row in result.metrics if f"agent/{name}/loss/total" in row]
        assert losses and all(map(math.isfinite, losses)) and f"agent/{name}/eval/accuracy" in last
    assert last["agent/main/calls/an_episode"] == 1.0 <= last["agent/left/calls/an_episode"]


def test_a_warm_start_teaches_all_but_who_is_frozen(tmp_path: Path) -> None:
    taught = ["steps=1", "warm_start={steps: 40, batch: 16, lr: 1.0e-2}", "policies.right.optimizer=null"]
    run = build(resolve(file=RECIPES / "delegation.yaml", overrides=[*SMALL, *taught]))
    before = [[p.detach().clone() for p in agent.policy.trainable_parameters()] for agent in run.agents]
    loss = warm_start(run, lambda text: None)["warm_start/loss"]
    now = [list(agent.policy.trainable_parameters()) for agent in run.agents]
    same = [all(map(torch.equal, a, b)) for a, b in zip(before, now, strict=True)]
    assert same == [False, False, True] and loss < 2.0
    assert accuracy(run.acting, run.task, run.settings, held_out=True, key=0) < 0.5  # right is as it was


def test_sft_alone_gives_a_model_for_each(tmp_path: Path) -> None:
    fine_tune(resolve(file=RECIPES / "delegation.yaml", overrides=SMALL), tmp_path / "out", quiet=True, as_json=True)
    assert {p.parent.name for p in (tmp_path / "out").glob("*/model.safetensors")} == {"main", "left", "right"}


def test_one_policy_may_be_all_of_them(tmp_path: Path) -> None:
    model = "model={init: {layers: 1, width: 16, heads: 2, context: 24}}"
    recipe = resolve(method="m-grpo", overrides=["task=delegation", model, *SMALL[4:], "steps=1", "warm_start.steps=2"])
    assert "agent/right/eval/accuracy" in start(recipe, tmp_path / "run", quiet=True).last
