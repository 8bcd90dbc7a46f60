"""How methods, files and arguments make one recipe."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from coterie import wiring
from coterie.errors import RecipeError
from coterie.recipe import Recipe, resolve
from coterie.schedules import Schedule


def made(method: str | None = None, *overrides: str, text: str | None = None, tmp: Path | None = None) -> Recipe:
    file = None
    if text is not None:
        assert tmp is not None
        file = tmp / "recipe.yaml"
        file.write_text(text)
    return resolve(method=method, file=file, overrides=["task=sort", *overrides])


def settings(recipe: Recipe, slot: str) -> dict:
    return recipe.single[slot].settings


def test_later_layers_win(tmp_path: Path) -> None:
    text = "method: dapo\nsteps: 7\nobjective: {trust_region: {ppo_clip: {eps_high: 0.5}}}\n"
    recipe = made(None, "steps=9", text=text, tmp=tmp_path)
    assert recipe.method == "dapo" and recipe.settings.steps == 9
    assert settings(recipe, "objective.trust_region")["eps_high"] == 0.5
    assert settings(recipe, "objective.trust_region")["eps_low"] == 0.2, "what the file leaves out stays the method's"


def test_the_method_on_the_command_line_replaces_the_files(tmp_path: Path) -> None:
    assert made("gspo", text="method: dapo\n", tmp=tmp_path).single["objective.ratio"].piece.slug == "sequence"


def test_methods_join_and_chains_append() -> None:
    recipe = made("dapo+kl+entropy-bonus+overlong-filtering")
    assert [b.piece.slug for b in recipe.chain["objective.terms"]] == ["kl", "entropy_bonus"]
    assert [b.piece.slug for b in recipe.chain["selection.weights"]] == ["drop_truncated"]
    assert [b.piece.slug for b in recipe.chain["selection.filters"]] == ["dynamic_sampling"]


def test_a_list_replaces_a_chain_and_a_mapping_edits_it() -> None:
    assert made("dapo", "selection.filters=[]").chain["selection.filters"] == []
    edited = made("dapo+kl", "objective.terms.kl.coef=0.5").chain["objective.terms"]
    assert [b.piece.slug for b in edited] == ["kl"] and edited[0].settings["coef"] == 0.5
    assert edited[0].settings["estimator"] == "k3"


def test_choosing_a_side_takes_that_methods_settings() -> None:
    recipe = made("dapo+cispo", "objective.trust_region=cispo")
    assert recipe.single["objective.trust_region"].piece.slug == "cispo"
    assert settings(recipe, "objective.trust_region")["max_ratio"] == 5.0


def test_methods_that_agree_do_not_conflict() -> None:
    chosen = ["objective.ratio=sequence", "objective.trust_region={eps_low: 3e-4, eps_high: 4e-4}"]
    assert made("grpo+gspo", *chosen).single["credit.baseline"].piece.slug == "group_norm"


def test_conflicts_are_one_sentence_with_a_way_out() -> None:
    with pytest.raises(RecipeError) as error:
        made("dapo+gspo")
    message = error.value.message
    assert "\n" not in message and message.count("objective.ratio") == 1
    assert "token in dapo" in message and "sequence in gspo" in message


def test_another_piece_in_a_slot_forgets_the_old_ones_settings() -> None:
    recipe = made("dapo", "objective.aggregation=constant", "objective.aggregation.length=10")
    assert settings(recipe, "objective.aggregation") == {"length": 10}


def test_a_whole_loss_stands_alone() -> None:
    recipe = made("opmd")
    assert "objective.ratio" not in recipe.single and "objective.trust_region" not in recipe.single


def test_schedules_are_settings_of_pieces_and_of_sections() -> None:
    recipe = made(None, "objective.trust_region.eps_high={from: 0.2, to: 0.4, over: 10}",
                  "rollout.temperature={from: 1.2, to: 0.8, over: 5, shape: cosine}")  # fmt: skip
    assert isinstance(settings(recipe, "objective.trust_region")["eps_high"], Schedule)
    assert recipe.single["objective.trust_region"].at(5)["eps_high"] == pytest.approx(0.3)
    assert isinstance(recipe.settings.rollout.temperature, Schedule)
    assert resolve(values=__import__("yaml").safe_load(recipe.to_yaml())).to_yaml() == recipe.to_yaml()


def test_a_data_file_is_a_task(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    recipe = resolve(values={"task": str(tmp_path / "rows.jsonl")}, overrides=["task.verifier=exact"])
    assert settings(recipe, "task")["path"] == str(tmp_path / "rows.jsonl")
    assert settings(recipe, "task")["verifier"] == "exact"


def test_a_models_settings_add_up_and_a_new_source_replaces_the_old(tmp_path: Path) -> None:
    text = "model: {init: {layers: 3}, dtype: bfloat16}\n"
    recipe = made(None, "model.init.width=32", "model.lora.r=4", text=text, tmp=tmp_path)
    assert recipe.settings.model == {"init": {"layers": 3, "width": 32}, "dtype": "bfloat16", "lora": {"r": 4}}
    assert resolve(
        file=tmp_path / "recipe.yaml", overrides=["task=sort"], values={"model": "hub/name"}
    ).settings.model == {"name": "hub/name", "dtype": "bfloat16"}


def test_a_method_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("title: Mine\nsummary: s\nrecipe: {objective: {aggregation: token}}\n")
    recipe = made(f"dr-grpo+{file}", "objective.aggregation=token")
    assert recipe.single["objective.aggregation"].piece.slug == "token"
    file.write_text("title: Mine\nsummary: s\nrecpe: {}\n")
    with pytest.raises(RecipeError, match=r"mine2?.yaml:3.*'recpe'"):
        made(str(file.rename(tmp_path / "mine2.yaml")))


def test_a_method_file_is_named_with_its_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("title: Mine\nsummary: s\nrecipe: {objective: {aggregation: token}}\n")
    with pytest.raises(RecipeError, match=r"(?s)unknown method 'mine'.*named as a file: mine\.yaml"):
        made("dapo+mine")
    assert made("dapo+mine.yaml+kl").chain["objective.terms"]


def test_two_whiteners_in_a_chain_are_pointed_out() -> None:
    recipe = made("grpo")
    recipe.chain["credit.modifiers"] = [recipe.single["credit.baseline"]]
    with pytest.warns(UserWarning, match="one after the other"):
        wiring.check(recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wiring.check(made("grpo"))


def test_a_column_read_before_it_is_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text(
        "from coterie.pieces import filter\n@filter()\ndef early(rewards, advantages): return rewards\n"
    )
    recipe = made(None, f"selection.filters=['{tmp_path}/early.py:early']")
    with pytest.raises(RecipeError, match="'advantages' before the credit stage makes it"):
        wiring.check(recipe)


def test_settings_in_a_mapping_may_name_a_piece_and_its_settings() -> None:
    """As `coterie.train(task="sort", **{"task.digits": 3})` does: the later key goes on top, in the order written."""
    recipe = resolve(values={
        "task": "sort", "task.digits": 3, "credit": {"baseline": "group_norm"}, "credit.baseline.scale": "none",
        "rollout": {"top_k": 4}, "rollout.top_p": 0.5, "steps": 3,
    })  # fmt: skip
    assert settings(recipe, "task")["digits"] == 3 and settings(recipe, "credit.baseline")["scale"] == "none"
    assert (recipe.settings.rollout.top_k, recipe.settings.rollout.top_p, recipe.settings.steps) == (4, 0.5, 3)


@pytest.mark.parametrize("first", ["0.7", "{from: 1, to: 0.5, over: 4}"])
@pytest.mark.parametrize("second", ["0.9", "{from: 2, to: 1, over: 8, shape: cosine}"])
def test_a_number_and_a_schedule_replace_each_other(first: str, second: str, tmp_path: Path) -> None:
    recipe = made(None, f"rollout.temperature={second}", text=f"rollout: {{temperature: {first}}}\n", tmp=tmp_path)
    assert recipe.to_yaml() == made(None, f"rollout.temperature={second}").to_yaml()


def test_a_section_with_nothing_in_it_says_nothing(tmp_path: Path) -> None:
    text = "rollout:\nupdate: {}\nobjective:\n  terms:\nrewards:\n  weights:\n"
    recipe = made(None, "rollout.group_size=4", text=text, tmp=tmp_path)
    assert recipe.to_yaml() == made(None, "rollout.group_size=4").to_yaml()
    with pytest.raises(RecipeError, match=r"recipe.yaml:1: unknown key 'rolout'(.|\n)*did you mean 'rollout'"):
        made(None, text="rolout: {}\n", tmp=tmp_path)


@pytest.mark.parametrize("written", ["mine.py:f", "[mine.py:f]", "{fn: mine.py:f, weight: 2}", "[{fn: mine.py:f}]"])
def test_one_reward_function_needs_no_list(written: str) -> None:
    (function,) = made(None, f"rewards.functions={written}").functions
    assert (function["fn"] if isinstance(function, dict) else function) == "mine.py:f"


def test_one_reward_function_from_python_needs_no_list_either() -> None:
    assert resolve(overrides=["task=sort"], functions=len).functions == [len]  # type: ignore[arg-type]


def test_weights_of_rewards_add_up_over_the_layers(tmp_path: Path) -> None:
    recipe = made(None, "rewards.weights.b=3", text="rewards: {weights: {a: 1, b: 2}}\n", tmp=tmp_path)
    assert recipe.settings.rewards.weights == {"a": 1.0, "b": 3.0}


def test_whole_numbers_stay_whole_on_a_schedule() -> None:
    recipe = made("dapo", "selection.filters.dynamic_sampling.max_rounds={from: 1, to: 4, over: 10}",
                  "credit.baseline.eps={from: 0, to: 1, over: 10}")  # fmt: skip
    (dynamic,) = recipe.chain["selection.filters"]
    rounds = [dynamic.at(step)["max_rounds"] for step in range(12)]
    assert rounds == sorted(rounds) and set(rounds) == {1, 2, 3, 4} and all(isinstance(r, int) for r in rounds)
    assert recipe.single["credit.baseline"].at(5)["eps"] == 0.5


def test_the_line_of_a_wrong_value_in_a_chain_is_named(tmp_path: Path) -> None:
    text = "objective:\n  terms:\n    - entropy_bonus\n    - kl:\n        coef: lots\n"
    with pytest.raises(RecipeError, match=r"recipe.yaml:5 \(objective.terms\): 'coef' of term 'kl' expects float"):
        made(None, text=text, tmp=tmp_path)


def test_a_users_piece_in_a_chain_can_be_edited(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(
        "from coterie.pieces import credit\n@credit()\n"
        "def times(advantages, rewards, *, factor: float = 2.0): return advantages * factor\n"
    )
    text = f"credit:\n  modifiers:\n    - {tmp_path}/twice.py:times\n"
    recipe = made(None, f"credit.modifiers={{'{tmp_path}/twice.py:times': {{factor: 3}}}}", text=text, tmp=tmp_path)
    assert [(b.piece.slug, b.settings) for b in recipe.chain["credit.modifiers"]] == [("times", {"factor": 3.0})]
    again = resolve(values=__import__("yaml").safe_load(recipe.to_yaml()))
    assert again.to_yaml() == recipe.to_yaml()
