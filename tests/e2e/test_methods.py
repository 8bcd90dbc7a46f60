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
from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.policies.causal_lm import CausalLM
from coterie.policies.reference import Reference
from coterie.recipe import resolve
from tests.e2e.conftest import DENOISES, TINY


def functions(*named: str) -> str:
    """The override that rewards with functions of tests/e2e/rewards.py; NAME=0 is an annotation."""
    parts = [(n, w or "1") for n, _, w in (text.partition("=") for text in named)]
    return f"rewards.functions=[{', '.join(f'{{fn: {REWARDS}:{n}, weight: {w}}}' for n, w in parts)}]"


REWARDS = Path(__file__).with_name("rewards.py")
TESTS = ("positions", "brevity")
JUDGE = f"rewards.pairwise.judge={Path(__file__).parents[2] / 'examples/pairwise_judge.py'}:closer"
EASY = ["task.digits=1", "task.alphabet='01'", "task.train=1", "task.held_out=1"]  # one in sixteen is right by chance
DENOISING = ("cps", "dancegrpo", "ddpo", "flash-dmd", "flow-grpo", "grpo-guard", "sage-grpo", "vgpo")
WORLD = [f"task={Path(__file__).with_name('walk.py')}:walk", "rollout.max_tokens=24"]
DILEMMA = ["task=dilemma", "rollout.max_tokens=24"]
WORLDLY = ("agent-flow", "gigpo", "hgpo", "iter-research", "mapo", "salt", "thor", "ui-s1", "agent-gym-rl")
WINDOW = ["rollout.strategy.size=2", "rollout.strategy.every=1"]
FORKS = ["rollout.strategy.steps=[0,2]"]
TREE = ["denoise.steps=4", "rollout.group_size=8", "rollout.strategy.splits=[0,1,2]"]
# What a method asks for beyond a task and a reward to show a signal: slug -> overrides.
NEEDS: dict[str, list[str]] = {
    "dapo": ["selection.filters.dynamic_sampling.metric=rewards"],
    "prof": [*EASY, "selection.filters.process_consistency.drop=2"],
    "s-grpo": ["rollout.strategy.cue='>'", "rewards.shaping.serial_decay.metric=rewards"],
    "ghpo": ["rollout.strategy.cue='>'"],
    "spo-tree": ["rollout.strategy.branching=[2,2,2]"],
    "gdpo": [functions("positions", "brevity")],
    "pama": [functions("positions", "brevity")],
    "p-grpo": [functions("positions", "thought")],
    "g-ra": [functions("outcome", "steps"), "rewards.shaping.gate.at=0.2"],
    "mo-grpo": [functions("positions", "brevity=0.5")],
    "paco-grpo": [functions("positions", "steps")],
    "gcpo": [functions("positions", "auxiliary=0")],
    "stratified": [functions("positions", "tool_calls=0")],
    "otc": [functions("positions", "tool_calls=0"), *EASY],
    "e-grpo": [functions("positions", "tool_calls=0"), "rewards.shaping.entity_match.found=tool_calls"],
    "prs": [functions("positions", "stage=0")],
    "gtpo": ["credit.modifiers.conflict_tokens.max_entropy=9"],
    "thr": EASY,
    "modpo": [functions("positions", "brevity=0.5"), "objective.loss.modpo.preference=positions"],
    "codedpo": [f"rewards.functions=[{', '.join(f'{{fn: {REWARDS}:{n}, name: test_{n}}}' for n in TESTS)}]"],
    "srpo-robust": ["objective.loss.srpo_robust.revises=null"],
    "drpo": ["objective.loss.discriminative.above=0.2"],
    "disco": ["objective.loss.discriminative.above=0.2"],
    "grpo-care": [functions("positions"), "rewards.shaping.consistency_bonus.accuracy=positions"],
    "lightning-rl": [functions("positions", "speed"), *EASY],
    "pref-grpo": [JUDGE],
    "arena-rl": [JUDGE],
    "brpo": [JUDGE],
    "grpo-s": [functions("positions", "hardness=0")],
    **dict.fromkeys(DENOISING, DENOISES),
    **dict.fromkeys(WORLDLY, WORLD),
    **dict.fromkeys(("ad-align", "m-grpo"), DILEMMA),
    "agent0-vl": [f"task={{{Path(__file__).with_name('walk.py')}:walk: {{verifies: true}}}}", "rollout.max_tokens=48"],
    "coda": ["task=plan-and-act", "rollout.max_tokens=12"],
    "ui-r1": ["rewards.shaping.length_budget.top=0.5"],
    "unirl": ["task=draw-and-read", "rollout.max_tokens=16"],
    "uae": ["task=redraw", "rollout.max_tokens=16"],
    "graph-grpo": ["credit.modifiers.edge_mean.pattern='[0-9]'"],
    "aepo-arbitrary-entropy": ["selection.weights.swap_tempered.share=0.25"],
    "adacot": [
        functions("positions", "auxiliary=0", "hardness=0"),
        "rewards.shaping.trigger_penalty.used=auxiliary",
        "rewards.shaping.trigger_penalty.needed=hardness",
    ],
    "cad-rl": [
        functions("positions", "brevity", "tool_calls=0"),
        "rewards.shaping.gate.gated=[positions, brevity]",
        "rewards.shaping.gate.by=tool_calls",
        "rewards.shaping.gate.at=0.0",
    ],
    "spine": [*EASY, "selection.weights.top_decisions.share=0.5"],
    "lp-reg": ["objective.trust_region.lp_reg.share=0.5"],
    "branchgrpo": [*DENOISES, *TREE],
    "dynamic-treerpo": [*DENOISES, "rollout.strategy.depth=3", "rollout.strategy.every=1"],
    **dict.fromkeys(("awm", "diffusion-nft", "gdro-flow"), DENOISES),
    "flowse-grpo": [*DENOISES, *WINDOW, "task={tones: {length: 8, train: 40, held_out: 12}}"],
    "paco-grpo-flow": [*DENOISES, "rewards.weights.right=1"],
    "pref-grpo-flow": [*DENOISES, f"rewards.pairwise.judge={REWARDS}:nearer"],
    "sol-rl": [*DENOISES, "rollout.strategy.candidates=12"],
    "granular-grpo": [*DENOISES, *FORKS, "denoise.steps=4", "rollout.group_size=8"],
    "mixgrpo": [*DENOISES, *WINDOW],
    "tempflow-grpo": [*DENOISES, *FORKS],
    "igpo": ["rollout.strategy.chunk=[1,1]"],
    "srpo-sample-routed": [*EASY, "objective.loss.sample_routed.template='>{solution}>'"],
    "kdrl": ["teacher.model={init: {layers: 1, width: 16, heads: 2, context: 32}}"],
    "urpa": [functions("positions", "start=0", "end=0"), "credit.modifiers.interval_confidence.width=4"],
}


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
    recipe = resolve(method=slug, overrides=[*TINY, *learnable, *NEEDS.get(slug, [])])
    result = start(recipe, tmp_path / "run", quiet=True)
    for row in result.metrics:
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float)), row
    before, after = weights_at(result.path, 0), weights_at(result.path, 2)
    assert any(not torch.equal(before[k], after[k]) for k in before)
    asks = any({"logp_ref", "kl_ref", "fine_gap"} & {*bound.piece.required} for _, bound in recipe.all_bound())
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


def test_what_pieces_before_the_update_record_is_in_the_metrics(tmp_path: Path) -> None:
    """Shaping, credit and selection, each step anew."""
    recipe = resolve(method="mc-grpo+unlikeliness", overrides=[*TINY, "task.dense=true", "rollout.group_size=5"])
    result = start(recipe, tmp_path / "run", quiet=True)
    for row in result.metrics[1:]:
        assert {"unlikeliness/rewarded_rank", "credit/mad_zero_share"} <= row.keys()
        assert row["weights/pivot_share"] == pytest.approx(0.2)


def test_what_shaping_remembers_survives_a_stop(tmp_path: Path) -> None:
    """The fewest tool calls of each prompt, in a checkpoint and back."""
    runs = [build(resolve(method="otc", overrides=[*TINY, *NEEDS["otc"]]))]
    for step in range(2):
        runs[0].metrics = {}
        assert collect(runs[0], step, Clock()) is not None
    runs[0].save(tmp_path / "checkpoint")
    runs.append(build(resolve(method="otc", overrides=[*TINY, *NEEDS["otc"]]), tmp_path / "checkpoint"))
    before, after = (run.stateful()["rewards.shaping=tool_efficiency"].state_dict() for run in runs)
    assert len(before["prompts"]) == 1 and all(torch.equal(before[k], after[k]) for k in before)


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


@pytest.mark.parametrize("method", ["pref-grpo", "arena-rl", "brpo"])
def test_the_judges_of_the_examples(cli: Callable, tmp_path: Path, method: str) -> None:
    """Named on the command line they train, are written down by their path, and resume."""
    judge = JUDGE.replace("closer", "shorter")
    assert cli("train", *TINY, "--method", method, judge, "-q", "-o", "run").code == 0
    assert "examples/pairwise_judge.py:shorter" in (tmp_path / "run/recipe.yaml").read_text()
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["pairwise/verdicts"] + last["pairwise/failures"] > 0
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
