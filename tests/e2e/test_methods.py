"""Every named method trains through the real loop, explains itself, and loads only what it needs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie import methods
from coterie.api import start
from coterie.policies.causal_lm import CausalLM
from coterie.policies.reference import Reference
from coterie.recipe import resolve
from tests.e2e.conftest import TINY


def weights_at(run: Path, step: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / f"checkpoints/step-{step:06d}/policy/model.safetensors")


@pytest.mark.parametrize("slug", methods.slugs())
def test_it_trains(slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps: finite metrics, weights that moved, and a reference policy only where a piece asks for one."""
    made: list[Reference] = []
    build = Reference.__init__
    monkeypatch.setattr(Reference, "__init__", lambda self, *a, **k: (made.append(self), build(self, *a, **k))[1])
    learnable = ["task.dense=true", "rollout.group_size=8"]  # from random weights nothing is right, some is less wrong
    if slug == "dapo":
        learnable.append("selection.filters.dynamic_sampling.metric=rewards")
    recipe = resolve(method=slug, overrides=[*TINY, *learnable])
    result = start(recipe, tmp_path / "run", quiet=True)
    for row in result.metrics:
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float)), row
    before, after = weights_at(result.path, 0), weights_at(result.path, 2)
    assert any(not torch.equal(before[k], after[k]) for k in before)
    asks = any("logp_ref" in bound.piece.required for _, bound in recipe.all_bound())
    assert len(made) == int(asks)


@pytest.mark.parametrize("slug", methods.slugs())
def test_it_explains_itself(slug: str, cli: Callable) -> None:
    shown = cli("methods", "show", slug)
    method = methods.load(slug)
    flat = " ".join(shown.out.split())
    assert shown.code == 0
    for words in (method.title, method.formula.splitlines()[0], *method.symbols.values(), method.paper or ""):
        assert " ".join(words.split()) in flat
    page = json.loads(cli("methods", "show", slug, "--json").out)
    assert page["pieces"] or page["recipe"].get("update")
    assert page["formula"] and page["when"] and page["summary"]


def test_every_method_survives_being_written_down() -> None:
    """The resolved recipe in a run's folder makes the same recipe again."""
    for slug in methods.slugs():
        recipe = resolve(method=slug, overrides=TINY)
        from coterie.layers import from_dotted

        again = resolve(values=from_dotted(recipe.to_dict(), "written").tree)
        assert again.to_yaml() == recipe.to_yaml(), slug


def test_dapo_replaces_groups_without_a_signal_and_caps_the_rounds(tmp_path: Path) -> None:
    """From random weights nearly every group is all wrong: it draws again and again, then trains on what there is."""
    recipe = resolve(
        method="dapo", overrides=[*TINY, "task.digits=3", "selection.filters.dynamic_sampling.max_rounds=3"]
    )
    last = start(recipe, tmp_path / "run", quiet=True).last
    assert last["groups/dropped"] > 0
    assert last["groups/drawn"] <= 3 * recipe.settings.draw.prompts


def test_no_signal_at_all_is_survived(tmp_path: Path) -> None:
    """Every group dropped: no update, nothing breaks, and the metrics say so."""
    recipe = resolve(method="dapo", overrides=[*TINY, "task.digits=8", "task.train=200", "rollout.max_tokens=9"])
    result = start(recipe, tmp_path / "run", quiet=True)
    assert result.last["groups/dropped"] == result.last["groups/drawn"]
    before, after = weights_at(result.path, 0), weights_at(result.path, 2)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_plan_names_providers_and_consumers(cli: Callable) -> None:
    plan = json.loads(cli("plan", *TINY, "--method", "dapo+kl", "--json").out)
    columns = {c["column"]: c for c in plan["columns"]}
    assert columns["logp_ref"]["provider"] == "reference" and columns["logp_ref"]["consumers"] == ["objective.terms=kl"]
    assert columns["rewards"]["provider"] == "score"
    assert plan["derived"]["rollouts an update"] == 16
    plain = json.loads(cli("plan", *TINY, "--json").out)
    assert "logp_ref" not in {c["column"] for c in plain["columns"]}
    assert plain["derived"]["reference policy"] == "not loaded"


def test_the_worked_example_of_contributing(cli: Callable, tmp_path: Path) -> None:
    """A credit piece in a file of one's own, named by its path, trains, shows up in the recipe, and resumes."""
    example = Path(__file__).parents[2] / "examples/median_baseline.py"
    piece = f"credit.baseline={example}:median_baseline"
    assert cli("train", *TINY, piece, "credit.baseline.power=2", "-q", "-o", "run").code == 0
    written = (tmp_path / "run/recipe.yaml").read_text()
    assert f"{example}:median_baseline" in written and "power: 2.0" in written
    assert cli("resume", "run", "steps=3", "-q").code == 0


def test_schedules_move_what_they_name(tmp_path: Path) -> None:
    overrides = [*TINY, "steps=3", "task.dense=true", "optimizer.lr={from: 0, to: 3e-3, over: 3}"]
    overrides.append("rollout.temperature={from: 1, to: 2, over: 2}")
    asked: list[float] = []
    original = CausalLM.rollout

    def spy(self: Any, prompts: Any, seeds: Any, sampling: Any, **options: Any) -> Any:
        asked.append(sampling.temperature)
        return original(self, prompts, seeds, sampling, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalLM, "rollout", spy)
        result = start(resolve(overrides=[*overrides, "evaluation.greedy=false"]), tmp_path / "run", quiet=True)
    rates = [row["lr"] for row in result.metrics if "lr" in row]
    assert rates == pytest.approx([0.0, 1e-3, 2e-3])
    assert [t for t in asked if t != 1.0] == [1.5, 2.0]


def test_a_run_can_be_evaluated_and_exported(cli: Callable, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert cli("train", *TINY, "model.lora.r=2", "-q", "-o", "run").code == 0
    metrics = json.loads(cli("eval", "run", "evaluation.samples=4", "--json").out)
    assert {"eval/accuracy", "eval/accuracy_low", "eval/pass@4", "eval/maj@4", "eval/greedy"} <= metrics.keys()
    assert cli("export", "run", "model").code == 0
    model, tokenizer = AutoModelForCausalLM.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
    assert model(torch.tensor([tokenizer.encode("21>")])).logits.isfinite().all()
    assert cli("export", "run", "model").code == 5
    again = json.loads(
        cli("eval", "model", "--task", "sort", "evaluation.prompts=8", "rollout.max_tokens=4", "--json").out
    )
    assert 0.0 <= again["eval/accuracy"] <= 1.0


def test_supervised_fine_tuning_by_itself(cli: Callable, tmp_path: Path) -> None:
    answer = cli("sft", *TINY, "warm_start.steps=5", "-o", "model", "--json")
    assert answer.code == 0 and json.loads(answer.out)["warm_start/steps"] == 5
    assert (tmp_path / "model/model.safetensors").is_file()
