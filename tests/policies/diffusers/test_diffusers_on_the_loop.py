"""Pipelines of diffusers on the real loop: adapters and whole denoisers, resumed, exported, with the pieces of flow."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_conformance import SETTINGS, name

from coterie.api import resume, start
from coterie.build import build, build_task
from coterie.cli.demo import RECIPES
from coterie.clock import Clock
from coterie.collect import collect
from coterie.errors import RecipeError
from coterie.loop import credit, select
from coterie.observe import rollout_store
from coterie.observe.pictures import side_by_side, view
from coterie.pieces import TABLE_KINDS, Piece
from coterie.policies import kinds
from coterie.policies.diffusers import files
from coterie.policies.diffusers.policy import DiffusersPolicy
from coterie.policies.flow.policy import FlowPolicy
from coterie.recipe import CHAIN, SINGLE, Recipe, resolve
from coterie.registry import all_pieces
from coterie.run import Run
from coterie.tasks.base import PICTURES, Task
from coterie.update import update
from tests.e2e.conftest import DENOISES, TINY

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
SMALL = [
    "task={colours: {names: [red, blue]}}", "threads=1", "steps=2", "draw.prompts=2", "rollout.group_size=4",
    "denoise.steps=3", "evaluation.prompts=4", "optimizer.lr=1e-3", "checkpoint.every=2", "log.rollouts_every=2",
]  # fmt: skip
LORA = "model.lora={r: 2, alpha: 4}"
SLOT = {kind: slot for slot, kind in {**SINGLE, **CHAIN}.items()}
OWN = {"kl_ref", "mean_gap", "step_std", "step_size", "step_gain", "entropy_old", "logp_ref", "preview_rewards"}
"""Columns of which the policy's own mathematics is a part."""
PIECES = [
    p for p in all_pieces()
    if p.kind in TABLE_KINDS - {"imitation"} and p.module.startswith("coterie.") and OWN & {*p.required, *p.optional}
    and not {*p.required} & DiffusersPolicy.lacks.keys()
]  # fmt: skip


def model(architecture: str) -> str:
    return f"model={{kind: diffusers, init: {{architecture: {architecture}, layers: 1, width: 16}}}}"


@pytest.fixture(scope="module")
def shared() -> Any:
    """The pipeline of SD3, built once; its weights are put back before each use."""
    recipe = resolve(overrides=[*SMALL, model("sd3")])
    policy = build(recipe).policy
    assert isinstance(policy, DiffusersPolicy)
    return policy.pipe, {n: p.clone() for n, p in policy.model.state_dict().items()}


def one_update(recipe: Recipe, steps: int = 1) -> Run:
    run = build(recipe)
    for step in range(steps):
        batch = collect(run, step, Clock())
        assert batch is not None
        update(run, select(run, credit(run, batch, step, Clock()), step, Clock()), step, Clock())
        run.policy.version += 1
    run.rewards.close()
    return run


def warm(completions: list[np.ndarray]) -> list[float]:
    """How red pictures and videos are."""
    return [float((c[..., 0] - c[..., 2]).mean()) for c in completions]


def exact(completions: list[np.ndarray]) -> list[float]:
    return [float(c.mean() > 0.5) for c in completions]


def format(completions: list[np.ndarray]) -> list[float]:
    return [float(c.std() > 0.2) for c in completions]


@pytest.mark.parametrize("architecture", ["flux", "sana", "wan", "sd"])
def test_every_architecture_learns_by_adapters(architecture: str) -> None:
    overrides = [*SMALL, model(architecture), LORA, "denoise.guidance=1.5", "model.max_forward=5"]
    run = one_update(resolve(method="flow-grpo", overrides=overrides, functions=[warm]), 2)
    assert run.metrics["ratio/max_abs_log"] < 1.0 and run.metrics["grad/norm"] > 0.0
    assert any(bool(p.any()) for n, p in run.policy.state_dict().items() if "lora_B" in n)


@pytest.mark.parametrize("piece", PIECES, ids=name)
def test_pieces_of_denoising_run_unchanged(piece: Piece, shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece that reads what a flow policy provides; all others see columns alone."""
    pipe, weights = shared
    pipe.transformer.load_state_dict(weights)
    monkeypatch.setattr(files, "load_pipeline", lambda spec: (pipe, None))
    settings, slot = SETTINGS.get(name(piece), {}), SLOT[piece.kind]
    values: dict[str, Any] = {slot: [{piece.slug: settings}] if slot in CHAIN else {piece.slug: settings}}
    if piece.kind == "ratio" and piece.shape == "B":
        values["objective.aggregation"] = "sequence"
    recipe = resolve(overrides=[*SMALL, model("sd3")], values=values, functions=[warm, exact, format])
    run = one_update(recipe)
    assert all(bool(p.isfinite().all()) for p in run.policy.trainable_parameters())


def test_the_walk_covers_kinds_and_the_table_is_the_flow_policys(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"term", "ratio", "modifier", "loss"} <= {p.kind for p in PIECES} or len(PIECES) >= 5
    pipe, weights = shared
    pipe.transformer.load_state_dict(weights)
    monkeypatch.setattr(files, "load_pipeline", lambda spec: (pipe, None))
    tables = []
    for overrides in ([*SMALL, model("sd3")], [*TINY, *DENOISES, "rollout.group_size=4", "draw.prompts=2"]):
        run = build(resolve(method="flow-grpo", overrides=overrides))
        batch = collect(run, 0, Clock())
        assert batch is not None
        tables.append({k: v.dtype for k, v in batch.columns.items() if isinstance(v, torch.Tensor)})
    assert tables[0] == tables[1]
    assert DiffusersPolicy.lacks.items() ^ FlowPolicy.lacks.items() == {("fine_gap", DiffusersPolicy.lacks["fine_gap"])}


@pytest.mark.parametrize("strategy", ["sliding_window", "single_noise", "noise_tree"])
def test_strategies_of_denoising(strategy: str, shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, weights = shared
    pipe.transformer.load_state_dict(weights)
    monkeypatch.setattr(files, "load_pipeline", lambda spec: (pipe, None))
    settings = {"sliding_window": {"size": 1}, "single_noise": {}, "noise_tree": {"splits": [0, 1]}}[strategy]
    recipe = resolve(overrides=[*SMALL, model("sd3")], values={"rollout.strategy": {strategy: settings}})
    run = one_update(recipe)
    assert run.metrics["ratio/max_abs_log"] < 1e-5


def test_resumed_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Stopped after one of two steps, with a batch that waits; what it left is a pipeline and a policy."""
    overrides = [*SMALL, model("sd3"), "update.staleness=1"]
    whole = start(resolve(method="flow-grpo", overrides=overrides), tmp_path / "whole", quiet=True)
    start(resolve(method="flow-grpo", overrides=[*overrides, "steps=1"]), tmp_path / "part", quiet=True)
    resumed = resume(tmp_path / "part", quiet=True, steps=2)
    timeless = [
        [{k: v for k, v in row.items() if not k.startswith(("time/", "system/", "tokens/per", "eval/"))} for row in r]
        for r in (whole.metrics, resumed.metrics)
    ]
    assert timeless[0] == timeless[1] and timeless[0][-1]["grad/norm"] > 0.0
    picture = (tmp_path / "whole/samples/step-000002.png").read_bytes()
    assert picture == (tmp_path / "part/samples/step-000002.png").read_bytes()
    folder = tmp_path / "whole/checkpoints/step-000002/policy"
    assert diffusers.DiffusionPipeline.from_pretrained(folder).transformer is not None
    again = build(resolve(overrides=[*SMALL, f"model={{name: {folder}, height: 16, width: 16}}"]))
    assert isinstance(again.policy, DiffusersPolicy) and again.policy.source == folder
    rows = rollout_store.read(tmp_path / "whole/rollouts/step-000002.parquet")
    assert rows[0]["completion"].startswith("data:image/png;base64,")


def test_adapters_and_their_optimizer_are_restored(tmp_path: Path) -> None:
    overrides = [*SMALL, model("sd3"), LORA]
    run = one_update(resolve(method="flow-grpo", overrides=overrides))
    run.save(tmp_path / "kept")
    again = build(resolve(method="flow-grpo", overrides=overrides), tmp_path / "kept")
    for step in (1, 2):
        for each in (run, again):
            batch = collect(each, step, Clock())
            assert batch is not None
            update(each, select(each, credit(each, batch, step, Clock()), step, Clock()), step, Clock())
    state, other = run.policy.state_dict(), again.policy.state_dict()
    assert state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)
    assert again.policy.version == run.policy.version and (tmp_path / "kept/policy" / files.LORA).is_file()


def test_your_own_prompts_and_reward(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{c} thing {i}"}) + "\n" for i in range(4) for c in ("red", "blue")))
    overrides = [*SMALL, model("sd3"), f"task={file}"]
    run = one_update(resolve(method="flow-grpo", overrides=overrides, functions=[warm]))
    assert run.task.latent == PICTURES and math.isfinite(run.metrics["loss/total"])


@pytest.mark.parametrize(("overrides", "told"), [
    (["task=sort", model("sd3")], "grades texts, and a pipeline of diffusers draws pictures"),
    (["task=ring", model("sd3")], r"asks for arrays of shape \(2,\)"),
    (["task=colours", "model={flow: {layers: 1}}"], "asks for pictures of any size"),
    ([*SMALL, "model={kind: diffusers, init: {depth: 3}}"], r"unknown key 'model\.init\.depth'"),
    ([*SMALL, model("sd3"), "model.lora.rank=3"], r"unknown key 'model\.lora\.rank'"),
    ([*SMALL, model("sd3"), "model.heigth=3"], r"unknown key 'model\.heigth'"),
    ([*SMALL, model("sd3"), "rollout.temperature=0.5"], r"rollout\.temperature is set"),
    ([*SMALL, model("sd3"), "objective.terms=[entropy_bonus]"], "which a policy of denoising steps does not have"),
    (["task={colours: {names: [mauve]}}", model("sd3")], "colours are red"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        build(resolve(overrides=overrides))


def test_the_recipe_of_pictures_takes_any_pipeline(tmp_path: Path) -> None:
    recipe = RECIPES / "images.yaml"
    policy = build(resolve(file=recipe)).policy
    assert isinstance(policy, DiffusersPolicy) and policy.has_adapters
    policy.save(tmp_path / "base", merge=True)
    other = build(resolve(file=recipe, overrides=[f"model={tmp_path / 'base'}", "model.height=16", "model.width=16"]))
    assert isinstance(other.policy, DiffusersPolicy) and other.policy.source == tmp_path / "base"


def test_colours() -> None:
    task = build_task(resolve(overrides=["task=colours", model("sd3")]))
    assert task.verify is not None and len(task.train) == 36 and len(task.held_out) == 12
    red, blue = np.zeros((4, 4, 3)), np.zeros((2, 4, 4, 3))
    red[..., 0], blue[..., 2] = 0.9, 0.9
    assert task.verify(red, {"colour": "red"}) and task.verify(blue, {"colour": "blue"})
    assert not task.verify(red, {"colour": "blue"}) and not task.verify(np.ones((4, 4, 3)), {"colour": "red"})
    (reward,) = task.rewards
    scores = reward.fn([red, blue, red], ["red", "blue", "black"])
    assert scores[0] > 0.9 and scores[1] > 0.85 and scores[2] < 0.6
    assert kinds.draws_pictures(resolve(overrides=["task=colours", model("sd3")]))
    assert kinds.in_pictures(resolve(overrides=["task=sort"]), Task("t", [], [])).latent is None


def test_pictures_for_people() -> None:
    video = np.stack([np.full((2, 3, 3), k / 9, dtype=np.float32) for k in range(10)])
    assert side_by_side(video).shape == (2, 12, 3) and side_by_side(video)[0, -1, 0] == 1.0
    assert view(video, PICTURES).startswith("data:image/png;base64,")
    assert view(np.zeros(3), PICTURES) == "0 0 0"
