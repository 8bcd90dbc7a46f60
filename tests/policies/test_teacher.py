"""The teacher: scores with its own weights, spells like the policy, says nothing at an end that is not its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coterie import wiring
from coterie.api import start
from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.errors import PolicyError, RecipeError
from coterie.loop import begin
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.teacher import Teacher
from coterie.policies.tiny import TinySpec
from coterie.provide import provide
from coterie.recipe import resolve
from coterie.rollouts import Prompt, Sampling


def load(seed: int = 0, vocabulary: str = "abc") -> CausalLM:
    return CausalLM.load(ModelSpec(init=TinySpec(width=16, layers=1, vocabulary=vocabulary), seed=seed))


def rolled(policy: CausalLM):
    return policy.rollout(
        [Prompt((1, 3)), Prompt((1, 4, 5))], [[1, 2], [3, 4]], Sampling(temperature=0.8, max_tokens=6)
    )


def test_it_scores_with_its_own_weights_and_the_rollouts_temperature() -> None:
    policy, other = load(), load(seed=1)
    rollouts = rolled(policy)
    logp = Teacher(policy, other).score(rollouts)["logp_teacher"]
    assert torch.equal(logp, other.score(rollouts)["logp"].detach()) and not logp.requires_grad
    assert not torch.allclose(logp, rollouts["logp_old"])
    assert not other.trainable_parameters()


def test_it_says_nothing_at_an_end_that_is_not_its_own() -> None:
    policy, other = load(), load(seed=1)
    rollouts = rolled(policy)
    end = (rollouts["tokens"] == policy.tokenizer.eos_token_id) & rollouts["mask"]
    rollouts = rollouts.with_columns(
        tokens=torch.where(
            rollouts["mask"] & ~end.any(-1, keepdim=True), policy.tokenizer.eos_token_id, rollouts["tokens"]
        )
    )
    other.tokenizer.eos_token = other.tokenizer.pad_token
    logp = Teacher(policy, other).score(rollouts)["logp_teacher"]
    end = (rollouts["tokens"] == policy.tokenizer.eos_token_id) & rollouts["mask"]
    assert end.any() and torch.equal(logp.isnan(), end)


def test_another_alphabet_is_refused() -> None:
    with pytest.raises(PolicyError, match="spells differently"):
        Teacher(load(), load(vocabulary="cab"))


TINY = ["task={sort: {digits: 2, train: 40, held_out: 12}}", "draw.prompts=2", "rollout.group_size=4", "steps=2",
        "rollout.max_tokens=4", "threads=1", "evaluation.prompts=4", "task.dense=true"]  # fmt: skip
MODEL = "model={init: {layers: 1, width: 16, heads: 2, context: 32}}"


def test_a_recipe_without_a_teacher_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(RecipeError, match=r"logp_teacher(.|\n)*teacher\.model="):
        wiring.check_teacher(resolve(method="kdrl", overrides=TINY))


def test_a_saved_teacher_is_loaded_once_and_only_where_it_is_read(tmp_path: Path, monkeypatch) -> None:
    build(resolve(overrides=[*TINY, MODEL, "seed=5"])).policy.save(tmp_path / "teacher")
    made = []
    init = Teacher.__init__
    monkeypatch.setattr(Teacher, "__init__", lambda self, *a: (made.append(self), init(self, *a))[1])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="no piece of the recipe reads what it says"):
        start(resolve(method="grpo", overrides=[*TINY, MODEL, "teacher.model=teacher"]), tmp_path / "grpo", quiet=True)
    for method, named in (("grpo", []), ("kdrl", ["teacher.model=teacher"])):
        recipe = resolve(method=method, overrides=[*TINY, MODEL, *named])
        assert recipe.settings.teacher.model == (str(tmp_path / "teacher") if named else None)
        result = start(recipe, tmp_path / method, quiet=True)
        assert len(made) == len(named)
        assert ("teacher/gap" in result.last) == bool(named)


def test_a_teacher_that_is_the_policy_has_no_say(tmp_path: Path) -> None:
    build(resolve(overrides=[*TINY, MODEL])).policy.save(tmp_path / "twin")
    run = build(resolve(method="kdrl", overrides=[*TINY, MODEL, f"teacher.model={tmp_path / 'twin'}"]))
    batch = provide(run, collect(run, 0, Clock()), "objective", 0, Clock())
    gap = (batch["logp_teacher"] - batch["logp_old"])[batch["mask"]]
    assert gap.abs().max() < 1e-4


def test_what_cannot_be_loaded_is_said_at_the_start(tmp_path: Path) -> None:
    from types import SimpleNamespace

    run = build(resolve(method="kdrl", overrides=[*TINY, MODEL, f"teacher.model={tmp_path / 'nothing'}"]))
    reporter = SimpleNamespace(note=print, step=lambda *a: None, checkpoint=lambda *a: None)
    with pytest.raises(PolicyError, match="no such folder"):
        begin(run, reporter)
