"""Every piece of the registry on a policy that denoises: it runs unchanged, or says why it cannot."""

from __future__ import annotations

import builtins
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_conformance import SETTINGS, name

from coterie import methods, wiring
from coterie.api import start
from coterie.build import build, build_task
from coterie.clock import Clock
from coterie.collect import collect
from coterie.columns import COLUMNS
from coterie.errors import PolicyError, RecipeError
from coterie.evaluator import evaluate
from coterie.loop import begin, credit, select
from coterie.observe import rollout_store
from coterie.observe.pictures import to_bytes
from coterie.pieces import TABLE_KINDS, Piece
from coterie.policies import kinds
from coterie.policies.flow.policy import FlowPolicy
from coterie.recipe import CHAIN, SINGLE, Recipe, resolve
from coterie.registry import all_pieces
from coterie.run import Run
from coterie.tasks.base import PICTURES, Latent
from coterie.update import update
from tests.e2e.conftest import DENOISES, TINY

PIECES = [
    p for p in all_pieces() if p.kind in TABLE_KINDS - {"imitation"} and p.module.startswith("coterie.")
]  # imitation is of tokens, and refused as a slot
SLOT = {kind: slot for slot, kind in {**SINGLE, **CHAIN}.items()}
ENVIRONMENT = {n for n, c in COLUMNS.items() if c.provider == "environment"}
SMALL = [*TINY, *DENOISES]


def exact(completions: list[np.ndarray], target: list[list[float]]) -> list[float]:
    return [-float(np.hypot(*(c - t))) for c, t in zip(completions, target, strict=True)]


def format(completions: list[np.ndarray]) -> list[float]:
    return [float(c[0] > 0) for c in completions]


class Silent:
    """What a run reports to; nobody looks."""

    stopping = False

    def note(self, text: str) -> None: ...

    def step(self, run: Run, batch: Any, clock: Clock) -> None: ...

    def checkpoint(self, run: Run) -> None: ...


def recipe_with(piece: Piece) -> Recipe:
    settings, slot = SETTINGS.get(name(piece), {}), SLOT[piece.kind]
    values: dict[str, Any] = {slot: [{piece.slug: settings}] if slot in CHAIN else {piece.slug: settings}}
    if piece.kind == "ratio" and piece.shape == "B":
        values["objective.aggregation"] = "sequence"
    return resolve(overrides=SMALL, values=values, functions=[exact, format])


def one_update(recipe: Recipe) -> Run:
    run = build(recipe)
    begin(run, Silent())  # type: ignore[arg-type]
    for step in range(2):
        batch = collect(run, step, Clock())
        if batch is not None:
            update(run, select(run, credit(run, batch, step, Clock()), step, Clock()), step, Clock())
    run.rewards.close()
    return run


@pytest.mark.parametrize("piece", PIECES, ids=name)
def test_every_piece_runs_or_says_why_not(piece: Piece) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # two normalisations in a row
        recipe = recipe_with(piece)
        lacking = [column for column in piece.required if column in FlowPolicy.lacks]
        if lacking:
            with pytest.raises(RecipeError) as told:
                build(recipe)
            assert f"reads '{lacking[0]}'" in told.value.message and FlowPolicy.lacks[lacking[0]] in told.value.message
        elif ENVIRONMENT & {*piece.required}:
            with pytest.raises(RecipeError, match="which nobody provides"):
                build(recipe)
        else:
            run = one_update(recipe)
            assert all(bool(p.isfinite().all()) for p in run.policy.trainable_parameters())


def test_the_walk_runs_most_pieces() -> None:
    runs = [p for p in PIECES if not {*p.required} & (FlowPolicy.lacks.keys() | ENVIRONMENT)]
    assert len(runs) > 0.6 * len(PIECES)
    for kind in ("ratio", "trust_region", "loss", "term", "aggregation", "baseline", "modifier", "selection"):
        assert any(p.kind == kind for p in runs)
    refused = {p.slug for p in PIECES if {*p.required} & FlowPolicy.lacks.keys()}
    assert {"prefix_tree", "conflict_tokens", "consistency_bonus", "semantic_entropy", "entropy_bonus"} <= refused


@pytest.mark.parametrize(("override", "told"), [
    ("rollout.strategy=segment_tree", "drives a policy of tokens"),
    ("rollout.temperature=0.7", r"rollout\.temperature is set"),
    ("rollout.stop=[x]", r"rollout\.stop is set"),
    ("rewards.process=x.py:y", "scores the steps of a text"),
])  # fmt: skip
def test_settings_for_language_are_refused(override: str, told: str) -> None:
    recipe = resolve(overrides=[*SMALL, override])
    with pytest.raises(RecipeError, match=told):
        kinds.check(recipe, build_task(recipe))


@pytest.mark.parametrize(("override", "told"), [
    ("denoise.steps=4", r"denoise\.steps is set"),
    ("rollout.sampler=cps", "rule for denoising steps"),
    ("objective.terms=[exact_kl]", "reads 'step_size'.*tokens have no noise level"),
    ("objective.ratio=guarded", "reads 'step_std'.*without Gaussian noise"),
])  # fmt: skip
def test_settings_for_denoising_are_refused_by_a_language_model(override: str, told: str) -> None:
    recipe = resolve(overrides=[*TINY, override])
    with pytest.raises(RecipeError, match=told):
        build(recipe)


def test_a_wrong_model_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'model\.flow\.depth'"):
        build(resolve(overrides=[*SMALL, "model.flow.depth=3"]))
    with pytest.raises(RecipeError, match=r"unknown key 'model\.init'"):
        build(resolve(overrides=[*SMALL, "model={init: {layers: 1}}"]))
    with pytest.raises(PolicyError, match="cannot read"):
        build(resolve(overrides=[*SMALL, "model=./nowhere"]))


@pytest.mark.parametrize("sampler", ["flow_sde", "dance_sde", "cps", "sage_sde", "ddim"])
def test_the_first_update_is_on_policy_and_a_change_is_noticed(sampler: str) -> None:
    overrides = [*SMALL, f"rollout.sampler={sampler}", "denoise.guidance=1.5", "warm_start.steps=20"]
    run = one_update(resolve(overrides=overrides))
    assert run.policy.tolerance == 1e-5 and run.policy.version == 22
    broken = build(resolve(overrides=overrides))
    batch = collect(broken, 0, Clock())
    assert batch is not None
    batch = select(broken, credit(broken, batch, 0, Clock()), 0, Clock())
    with torch.no_grad():
        broken.policy.model.leave.bias += 0.01
    with pytest.raises(PolicyError, match="differ from the sampler's"):
        update(broken, batch, 0, Clock())


@pytest.mark.parametrize("split", [1, 7, 16384])
def test_the_gradient_does_not_depend_on_micro_batches(split: int) -> None:
    overrides = [*SMALL, "model.dtype=float64", "warm_start.steps=5"]
    grads = []
    for budget in (split, 100):
        recipe = resolve(method="flow-grpo", overrides=[*overrides, f"update.tokens_per_microbatch={budget}"])
        grads.append(torch.cat([p.detach().flatten() for p in one_update(recipe).policy.trainable_parameters()]))
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_evaluation_and_what_is_recorded(tmp_path: Path) -> None:
    """Samples of an evaluation are the ODE's, whatever the sampler; pictures and rollouts are in the run directory."""
    recipe = resolve(method="flow-grpo", overrides=[*SMALL, "evaluation.samples=3", "denoise.eval_steps=7"])
    result = start(recipe, tmp_path / "run", quiet=True)
    assert {"eval/accuracy", "eval/pass@3", "eval/length"} <= result.metrics[0].keys()
    assert "eval/greedy" not in result.metrics[0] and "eval/maj@3" not in result.metrics[0]
    other = resolve(method="dancegrpo", overrides=[*SMALL, "evaluation.samples=3", "denoise.eval_steps=7"])
    run = build(other)
    assert evaluate(run.policy, run.task, run.settings)["eval/accuracy"] == result.metrics[0]["eval/accuracy"]
    pictures = sorted(p.name for p in (result.path / "samples").iterdir())
    assert pictures == ["step-000000.png", "step-000002.png"]
    report = (result.path / "report.html").read_text()
    assert report.count("<figure>") == 2
    assert "<th>accuracy</th>" in report and "<th>length</th>" not in report and "shaded" not in report
    rows = rollout_store.read(result.path / "rollouts/step-000001.parquet")
    assert len(rows) == 16 and len(rows[0]["completion"].split()) == 2 and len(rows[0]["logp_old"]) == 4


def test_methods_for_denoising_are_refused_on_text() -> None:
    for slug in ("flow-grpo", "dancegrpo", "cps", "grpo-guard", "ddpo"):
        assert methods.load(slug)
        with pytest.raises(RecipeError, match="a rule for denoising steps"):
            build(resolve(method=slug, overrides=TINY))


def test_the_reference_is_loaded_where_the_exact_kl_asks() -> None:
    with_kl = resolve(method="flow-grpo", overrides=SMALL)
    assert wiring.reads_reference(with_kl) and not wiring.reads_reference(resolve(method="cps", overrides=SMALL))
    run = one_update(with_kl)
    assert run.metrics["kl/ref"] > 0.0


def test_digits_needs_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(module: str, *args: Any, **kwargs: Any) -> Any:
        if module.startswith("sklearn"):
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(RecipeError, match="needs scikit-learn") as told:
        build_task(resolve(values={"task": {"digits": {"seed": 9}}}))
    assert told.value.hint == "pip install 'coterie[flow]'"


def test_grey_pictures_are_ink_on_paper() -> None:
    """In the report's rollouts as in its samples; what has colours is as it is."""
    grey, coloured = np.array([[-1.0, 0.0, 1.0, 7.0]]), np.array([[[0.0, 0.5, 1.0]]])
    assert to_bytes(grey, Latent((1, 4), ())).tolist() == [[255, 128, 0, 0]]
    assert to_bytes(coloured, PICTURES).tolist() == [[[0, 128, 255]]]


def test_digits(tmp_path: Path) -> None:
    """References are right by the verifier, which has not seen them; noise is worse by every reward; a run draws."""
    pytest.importorskip("sklearn")
    task = build_task(resolve(values={"task": "digits"}))
    rows = [task.train[i] for i in range(100)]
    assert task.verify is not None and task.reference is not None
    clean = [task.reference(row) for row in rows]
    rng = np.random.default_rng(0)
    noisy = [c + 0.8 * rng.standard_normal(c.shape) for c in clean]
    assert np.mean([task.verify(c, r) for c, r in zip(clean, rows, strict=True)]) > 0.95
    digit, contrast, preference = (reward.fn for reward in task.rewards)
    labels = [row["digit"] for row in rows]
    assert np.mean(digit(clean, labels)) > np.mean(digit(noisy, labels)) + 0.2
    assert np.mean(digit(clean, [(k + 1) % 10 for k in labels])) < -3
    assert np.mean(preference(clean)) > np.mean(preference(noisy)) + 0.2
    assert contrast([np.ones((8, 8)), np.zeros((8, 8))]) == [1.0, 0.0]
    overrides = [*TINY, *DENOISES, "task=digits", "log.rollouts_every=1"]
    result = start(resolve(method="flow-grpo", overrides=overrides), tmp_path / "run", quiet=True)
    row = rollout_store.read(result.path / "rollouts/step-000001.parquet")[0]
    assert row["completion"].startswith("data:image/png;base64,")
    assert {"reward/digit", "reward/contrast", "reward/preference"} <= result.last.keys()
    assert "<img class=sample" in (result.path / "report.html").read_text()
