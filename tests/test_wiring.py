"""Which columns a recipe reads, who gives them, and what is refused before anything is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from coterie import wiring
from coterie.columns import COLUMNS
from coterie.errors import RecipeError
from coterie.recipe import Recipe, resolve


def made(method: str = "grpo", *overrides: str) -> Recipe:
    return resolve(method=method, overrides=["task=sort", *overrides])


def table(recipe: Recipe) -> dict[str, wiring.Use]:
    return {use.column: use for use in wiring.uses(recipe)}


def test_a_column_is_listed_with_its_provider_and_every_reader() -> None:
    found = table(made("dapo+kl+entropy-bonus"))
    assert found["logp_ref"].provider == "reference" and found["logp_ref"].consumers == ("objective.terms=kl",)
    assert found["logp_ref"].cost == "weights in memory + forward"
    assert found["entropy"].provider == "policy" and found["entropy"].cost == "forward"
    assert set(found["logp"].consumers) >= {"objective.ratio=token", "objective.terms=kl"}
    assert found["groups"].cost == "free" and "state_key" not in found
    assert all(use.provider == COLUMNS[use.column].provider for use in found.values())


def test_shaping_that_no_credit_would_read_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"rewards\.shaping=soft_overlong .* credit\.baseline=decoupled_norm"):
        wiring.check(made("gdpo", "rewards.shaping=[soft_overlong]"))
    wiring.check(made("gdpo"))
    wiring.check(made("grpo", "rewards.shaping=[soft_overlong]"))


def test_only_what_is_required_is_provided() -> None:
    assert wiring.wanted(made("grpo"), "reference") == set()
    assert wiring.wanted(made("grpo+kl"), "reference") == {"logp_ref"}
    assert wiring.wanted(made("grpo+kl"), "reference", "rewards.shaping") == set()
    assert wiring.wanted(made("grpo+kl-reward"), "reference", "rewards.shaping") == {"logp_ref"}
    assert wiring.wanted(made("reinforce++", "rewards.shaping=[]"), "reference") == set()


def test_an_optional_column_is_shown_as_such(tmp_path: Path) -> None:
    (tmp_path / "wish.py").write_text(
        "from coterie.pieces import credit\n@credit()\ndef wish(rewards, groups, logp_ref=None): return rewards\n"
    )
    recipe = made("grpo", f"credit.baseline={tmp_path}/wish.py:wish")
    use = table(recipe)["logp_ref"]
    assert use.consumers == () and use.optional_for == ("credit.baseline=wish",)
    assert wiring.wanted(recipe, "reference") == set(), "a wish loads nothing"
    wiring.check(recipe)


def test_columns_of_an_environment_need_one(tmp_path: Path) -> None:
    (tmp_path / "steps.py").write_text(
        "from coterie.pieces import credit\n@credit()\ndef by_step(rewards, step_rewards): return rewards\n"
    )
    recipe = made("grpo", f"credit.baseline={tmp_path}/steps.py:by_step")
    with pytest.raises(RecipeError, match=r"credit.baseline=by_step reads 'step_rewards'(.|\n)*agent environment"):
        wiring.check(recipe, has_process=False)
    wiring.check(recipe, has_process=False, provides=frozenset({"step_rewards"}))


def test_scores_of_steps_come_from_a_process_function(tmp_path: Path) -> None:
    (tmp_path / "marks.py").write_text(
        "from coterie.pieces import credit\n@credit()\ndef by_mark(rewards, turn, step_rewards): return rewards\n"
        "def score(completions, completion_steps): return [[1.0] * len(s) for s in completion_steps]\n"
    )
    piece = f"credit.baseline={tmp_path}/marks.py:by_mark"
    with pytest.raises(RecipeError, match=r"reads 'turn'(.|\n)*rewards.process=file.py:name"):
        wiring.check(made("grpo", piece), has_process=False)
    wiring.check(made("grpo", piece), has_process=True)
    wiring.check(made("grpo", piece, f"rewards.process={tmp_path}/marks.py:score"), has_process=True)
    with pytest.raises(RecipeError, match="no piece of the recipe reads the scores of steps"):
        wiring.check(made("grpo", f"rewards.process={tmp_path}/marks.py:score"), has_process=True)


def test_forks_need_a_strategy_that_forks(tmp_path: Path) -> None:
    (tmp_path / "forks.py").write_text(
        "from coterie.pieces import credit\n@credit()\ndef by_fork(rewards, parent, branch): return rewards\n"
    )
    recipe = made("grpo", f"credit.baseline={tmp_path}/forks.py:by_fork")
    with pytest.raises(RecipeError, match=r"reads 'parent'(.|\n)*rollout.strategy=segment_probes"):
        wiring.check(recipe)
    wiring.check(made("grpo", f"credit.baseline={tmp_path}/forks.py:by_fork", "rollout.strategy=segment_probes"))


def test_verdicts_need_a_verifier(tmp_path: Path) -> None:
    (tmp_path / "verdict.py").write_text(
        "from coterie.pieces import credit\n@credit()\ndef by_verdict(rewards, correct): return rewards\n"
    )
    recipe = made("grpo", f"credit.baseline={tmp_path}/verdict.py:by_verdict")
    wiring.check(recipe, has_verifier=True)
    with pytest.raises(RecipeError, match="by_verdict reads column 'correct', and the task has no verifier"):
        wiring.check(recipe, has_verifier=False)


@pytest.mark.parametrize(
    ("kind", "slot", "column", "stage"),
    [
        ("filter", "selection.filters", "advantages", "credit"), ("shaping", "rewards.shaping", "advantages", "credit"),
        ("credit", "credit.baseline", "weights", "selection"), ("selection", "selection.weights", "ratio", "objective"),
        ("filter", "selection.filters", "ratio", "objective"),
    ],
)  # fmt: skip
def test_no_column_is_read_before_it_is_made(tmp_path: Path, kind: str, slot: str, column: str, stage: str) -> None:
    name = f"{kind}_{column}"
    (tmp_path / "early.py").write_text(
        f"from coterie.pieces import {kind}\n@{kind}()\ndef {name}(rewards, {column}): return rewards\n"
    )
    piece = f"'{tmp_path}/early.py:{name}'"
    recipe = made("grpo", f"{slot}={piece if slot == 'credit.baseline' else f'[{piece}]'}")
    with pytest.raises(RecipeError, match=f"'{column}' before the {stage} stage"):
        wiring.check(recipe)


@pytest.mark.parametrize("method", ["grpo", "dr-grpo", "rloo", "dapo", "gspo", "cispo", "opmd", "asymre"])
def test_a_group_of_one_is_refused_where_groups_are_compared(method: str) -> None:
    with pytest.raises(RecipeError, match=r"rollout\.group_size is 1(.|\n)*rollout\.group_size=8"):
        wiring.check(made(method, "rollout.group_size=1"))
    wiring.check(made(method, "rollout.group_size=2"))


def test_a_group_of_one_is_enough_for_a_baseline_over_the_batch() -> None:
    wiring.check(made("reinforce++", "rollout.group_size=1"))


def test_an_objective_is_needed() -> None:
    with pytest.raises(RecipeError, match="no objective"):
        wiring.check(made("grpo", "objective.trust_region=null"))


def test_one_ratio_a_rollout_does_not_go_with_an_advantage_a_decision() -> None:
    with pytest.raises(RecipeError, match=r"sequence has one ratio a rollout(.|\n)*sequence_token"):
        wiring.check(made("gspo", "credit.baseline=whitened_return"))
    wiring.check(made("gspo-token", "credit.baseline=whitened_return"))


def test_readers_of_a_column_that_depends_on_them_must_agree() -> None:
    recipe = made("lp-reg")
    assert wiring.argument(recipe, "logp_min_p", 0) == 0.02
    region = recipe.single["objective.trust_region"]
    other = dataclasses.replace(recipe, single=recipe.single | {"objective.loss": region.piece.bind({"min_p": 0.5})})
    with pytest.raises(RecipeError, match=r"lp_reg and .*lp_reg read 'logp_min_p' with different min_p: 0.02, 0.5"):
        wiring.check(other)
    bare = dataclasses.replace(region.piece, settings={})
    lacking = dataclasses.replace(recipe, single=recipe.single | {"objective.trust_region": bare.bind({})})
    with pytest.raises(RecipeError, match="depends on a setting 'min_p' that it lacks"):
        wiring.check(lacking)
