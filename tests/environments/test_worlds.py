"""The built-in worlds: their rules, their scripts, and warm starts on the episodes of those."""

from __future__ import annotations

import pytest
import torch

from coterie import registry
from coterie.environments import World
from coterie.environments.calculator import Calculator
from coterie.environments.frozen_lake import FrozenLake, show, way
from coterie.environments.guess_number import GuessNumber
from coterie.environments.scripted import line_of, played
from coterie.errors import RecipeError, RunError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.tasks.base import Task, validate
from coterie.tasks.calculator import calculator
from coterie.tasks.frozen_lake import frozen_lake
from coterie.tasks.guess_number import guess_number

QUICK = {"frozen-lake": frozen_lake, "guess-number": guess_number}


def policy_of(task: Task) -> CausalLM:
    assert task.vocabulary is not None
    spec = TinySpec(vocabulary=task.vocabulary, layers=1, width=32, heads=4, context=128)
    return CausalLM.load(ModelSpec(init=spec))


@pytest.mark.parametrize("slug", QUICK)
def test_the_script_succeeds_everywhere_and_silence_nowhere(slug: str) -> None:
    task = QUICK[slug]()
    report = validate(task)
    assert report.ok and report.rows == len(task.train) + len(task.held_out) == report.corrupted
    assert registry.get("task", slug).fn is QUICK[slug]
    assert not {r["prompt"] for r in task.train} & {r["prompt"] for r in task.held_out}
    assert QUICK[slug](seed=3).train == QUICK[slug](seed=3).train != task.train
    assert task.vocabulary is not None and task.world is not None and task.script is not None
    for row in task.held_out[:20]:
        episode = played(task.world, row, task.script)
        assert set("".join([row["prompt"], *episode.actions, *episode.observations])) <= set(task.vocabulary)


def test_the_calculator_asks_the_sandbox_and_answers() -> None:
    task = calculator(train=3, held_out=2)
    assert validate(task, limit=1).ok
    world = Calculator()
    world.reset({"answer": "12"})
    assert world.step("?3*4").observation == "12>"
    for said in ("?3*", "?open('/etc/passwd').read()", "?'ab'", "12", "", "?__import__('os').listdir('/root')"):
        step = world.step(said)
        assert (step.observation, step.done, step.reward) == ("e>", False, 0.0)
    assert (world.step("!12").reward, world.step("!12").done) == (1.0, True)
    assert (world.step("!13").reward, world.step("!13").done) == (0.0, True)


def test_the_lake() -> None:
    world = FrozenLake()
    row = {"grid": "..o/.o./..g", "start": [0, 0]}
    assert world.reset(row) == "a.o/.o./..g>"
    assert world.step("u").observation == world.step("l").observation == world.step("x").observation == "a.o/.o./..g>"
    for move in "ddr":
        step = world.step(move)
        assert not step.done and step.reward == 0
    step = world.step("r")
    assert step.done and step.reward == 1 and step.info["success"]
    world.reset(row)
    world.step("r")
    fell = world.step("r")
    assert fell.done and fell.reward == 0 and not fell.info["success"]
    assert way("a.o/.o./..g>") == "d" and way("ao./o../..g>") == ""
    assert show(["..", ".g"], (0, 1)) == ".a/.g>"


def test_the_number() -> None:
    world = GuessNumber()
    world.reset({"secret": 12, "low": 5, "high": 15})
    said = [world.step(a).observation for a in ("10", "14", "99", "x", "", "14", "11")]
    assert said == ["11-15>", "11-13>", "11-13>", "11-13>", "11-13>", "11-13>", "12-13>"]
    assert world.step("12").reward == 1.0


def test_a_number_that_is_not_settled_is_found_by_halving_alone() -> None:
    task = guess_number(turns=3, settled=False, train=20, held_out=20)
    assert validate(task).ok and all(row["secret"] is None for row in [*task.train, *task.held_out])
    world = GuessNumber()
    world.reset({"secret": None, "low": 5, "high": 11})
    said = [world.step(a).observation for a in ("6", "10", "99", "8", "9")]
    assert said == ["07-11>", "07-09>", "07-09>", "09-09>", ">"]
    world.reset({"secret": None, "low": 5, "high": 6})
    assert not world.step("6").done and world.step("05").reward == 1.0


def test_a_range_does_not_give_its_secret_away() -> None:
    """Each of its numbers is the secret of one row."""
    task = guess_number(train=20, held_out=5)
    secrets: dict[str, list[int]] = {}
    for row in task.train:
        secrets.setdefault(row["prompt"], []).append(row["secret"])
    assert len(secrets) == 20 and len({tuple(sorted(s)) for s in secrets.values()}) > 10
    for row in task.train:
        assert sorted(secrets[row["prompt"]]) == list(range(row["low"], row["high"] + 1))


@pytest.mark.parametrize("make", [lambda: frozen_lake(size=1), lambda: frozen_lake(size=2, holes=3),
                                  lambda: guess_number(largest=5), lambda: calculator(turns=1)])  # fmt: skip
def test_settings_make_sense(make) -> None:
    with pytest.raises(RecipeError):
        make()


def test_a_scripted_line_is_what_an_episode_would_be_and_only_actions_carry_loss() -> None:
    task = calculator(train=2, held_out=1)
    policy = policy_of(task)
    row = task.train[0]
    assert task.world is not None and task.script is not None
    tokens, decided = line_of(policy, task.world, row, task.script)
    text = policy.decode(tokens)
    asked, answered = "?" + row["prompt"][:-1], "!" + row["answer"]
    assert text == asked + row["answer"] + ">" + answered
    eos = policy.tokenizer.eos_token_id  # both actions are shorter than a turn may be
    assert [t for t, d in zip(tokens, decided, strict=True) if d].count(eos) == 2
    assert sum(decided) == len(asked) + len(answered) + 2
    prompt = policy.encode(row["prompt"])
    loss = policy.sft_loss([prompt], [tokens], decided=[decided])
    ids = torch.tensor([[*prompt, *tokens]])
    logp = policy.model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
    each = -logp.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert torch.allclose(loss, each[torch.tensor(decided)].mean(), atol=1e-5)


def test_a_script_may_not_fail() -> None:
    with pytest.raises(RunError, match="script failed"):
        played(World(GuessNumber), {"secret": 1}, lambda row, observations: "1")
