"""Rollouts from an engine that is not quite the trainer: noticed, said, corrected, and switched off by one setting."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_update import DENSE, assert_same, batch_of, gradients
from torch import Tensor

from coterie import loop
from coterie.api import start
from coterie.build import build
from coterie.clock import Clock
from coterie.errors import PolicyError, RecipeError
from coterie.mismatch import correct, samples_itself
from coterie.policies.causal_lm import CausalLM
from coterie.recipe import resolve
from coterie.rollout.engines.base import Generation
from coterie.rollout.engines.local import LocalEngine
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.run import Run
from coterie.update import update

BF16 = "model.sample_dtype=bfloat16"


class Noisy:
    """An engine whose log-probs are off: by noise, or because its weights are not the trainer's."""

    exact = False
    forbid = ()

    def __init__(self, inner: LocalEngine, noise: float) -> None:
        self.inner, self.noise, self.context = inner, noise, inner.context

    def generate(self, *args: Any, **options: Any) -> Generation:
        made = self.inner.generate(*args, **options)
        g = torch.Generator().manual_seed(len(made.logp))
        made.logp = torch.where(made.mask, made.logp + self.noise * torch.randn(made.logp.shape, generator=g), 0.0)
        return made


def noisy(monkeypatch: pytest.MonkeyPatch, *overrides: str, method: str = "grpo", noise: float = 0.5) -> Run:
    load = CausalLM.load

    def loaded(*args: Any, **options: Any) -> CausalLM:
        policy = load(*args, **options)
        policy.engine = Noisy(policy.engine, noise)  # type: ignore[assignment]
        return policy

    monkeypatch.setattr(CausalLM, "load", loaded)
    return build(resolve(method=method, overrides=[*DENSE, *overrides]))


def weights_pieces(run: Run) -> list[str]:
    return [b.piece.slug for b in run.recipe.chain["selection.weights"]]


def step(run: Run, number: int = 0) -> Rollouts:
    """A batch and its update, as the loop makes them; what selection records is in the metrics too."""
    from coterie.metrics import Collector, collect

    found = Collector()
    with collect(found):
        batch = batch_of(run)
    update(run, batch, number, Clock())
    run.metrics |= found.means()
    return batch


def test_our_engine_is_the_trainer_and_gets_no_correction() -> None:
    run = build(resolve(overrides=DENSE))
    assert run.policy.exact and weights_pieces(run) == [] and run.notes == []
    batch = batch_of(run)
    assert "logp_train" not in batch
    same = build(resolve(overrides=[*DENSE, "model.dtype=bfloat16", BF16]))
    assert same.policy.exact and weights_pieces(same) == []


def test_an_engine_that_differs_is_corrected_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    run = noisy(monkeypatch)
    assert weights_pieces(run) == ["truncated_importance"]
    assert len(run.notes) == 1 and "update.correction=false" in run.notes[0]
    batch = step(run)  # does not stop the run: the ratio is against the trainer's own
    assert run.metrics["ratio/max_abs_log"] < 1e-5 < 0.3 < run.metrics["mismatch/mean_abs"]
    assert run.metrics["mismatch/k1"] == pytest.approx(0.0, abs=0.2) and run.metrics["mismatch/k3"] > 0.05
    assert 0 < run.metrics["tis/truncated_share"] < 0.3 and 0.5 < run.metrics["tis/effective_share"] < 1
    mask = batch["mask"]
    want = (batch["logp_train"] - batch["logp_old"]).exp().clamp(max=2.0)
    torch.testing.assert_close(batch["weights"][mask], want[mask])
    step(run, 1)


def test_one_setting_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    run = noisy(monkeypatch, "update.correction=false")
    assert weights_pieces(run) == [] and "uncorrected" in run.notes[0]
    step(run)
    assert run.metrics["mismatch/max_abs"] > 0.5 and run.metrics["ratio/max_abs_log"] > 0.5


def test_a_correction_of_ones_own_is_not_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    run = noisy(monkeypatch, method="grpo+mis")
    assert weights_pieces(run) == ["masked_importance"] and run.notes == []
    step(run)
    assert 0 < run.metrics["mis/masked_share"] < 1


def test_an_engine_that_says_it_is_exact_and_is_not_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noisy, "exact", True)
    run = noisy(monkeypatch)
    assert weights_pieces(run) == []
    with pytest.raises(PolicyError, match=r"differ from the sampler's"):
        step(run)


def test_a_trainer_that_does_not_agree_with_itself_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = noisy(monkeypatch)
    batch = batch_of(run)
    with pytest.raises(PolicyError, match=r"differ from those it gave just before"):
        update(run, batch.with_columns(logp_train=batch["logp_train"] - 0.3), 0, Clock())


@pytest.mark.reduction("tis", "mis", "seq-mis")
@pytest.mark.parametrize("method", ["tis", "mis", "seq-mis"])
@pytest.mark.parametrize("base", ["grpo", "gspo", "opmd", "cispo"])
def test_on_an_exact_engine_the_gradient_is_that_without(base: str, method: str) -> None:
    plain, corrected = (build(resolve(method=m, overrides=DENSE)) for m in (base, f"{base}+{method}"))
    assert_same(gradients(corrected, batch_of(corrected)), gradients(plain, batch_of(plain)))
    assert corrected.metrics["ratio/max_abs_log"] < 1e-5


@pytest.mark.parametrize("late", [0, 1])
def test_the_ratio_is_against_the_trainer_and_recompute_logp_agrees(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the weights taken off again, it is the update whose old log-probs the trainer recomputed."""
    run = noisy(monkeypatch, f"update.staleness={late}", "optimizer.lr=1e-2")
    batch = batch_of(run).with_columns(weights=torch.ones(24))
    again = build(resolve(overrides=[*DENSE, "update.recompute_logp=true"]))
    without = Rollouts(
        batch.prompts, {k: v for k, v in batch.columns.items() if k != "logp_train"}, batch.sampling, batch.texts
    )
    assert_same(gradients(run, batch), gradients(again, without))


def test_later_epochs_move_the_ratio_and_not_the_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    run = noisy(monkeypatch, "update.epochs=3", "optimizer.lr=1e-2")
    batch = step(run)
    assert run.metrics["ratio/max_abs_log"] > 1e-3
    gap = (batch["logp_train"] - batch["logp_old"])[batch["mask"]]
    assert run.metrics["mismatch/mean_abs"] == pytest.approx(float(gap.abs().mean()), rel=1e-5)


def test_a_stale_batch_is_corrected_by_the_weights_of_its_update() -> None:
    """Decoupled: the trainer's log-prob is taken when the batch is trained on, not when it was sampled."""
    run = build(resolve(method="grpo+tis", overrides=[*DENSE, "update.staleness=1", "optimizer.lr=3e-2"]))
    late = loop.delay(run, batch_of(build(resolve(overrides=DENSE))))
    assert late is None
    for p in run.policy.trainable_parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    late = loop.delay(run, batch_of(build(resolve(overrides=DENSE))))
    assert late is not None
    late = Rollouts(late.prompts, {k: v for k, v in late.columns.items() if k != "weights"}, late.sampling, late.texts)
    late = loop.select(run, late, 0, Clock())
    with torch.no_grad():
        now = run.policy.score(late)["logp"]
    torch.testing.assert_close(late["logp_train"], now)
    assert float((now - late["logp_old"]).abs().max()) > 0.05


# Sampling from a copy in another precision


def test_a_copy_in_bfloat16_samples_follows_the_weights_and_is_corrected(tmp_path: Path) -> None:
    result = start(resolve(overrides=[*DENSE, BF16, "model.init.width=32"]), tmp_path / "run", quiet=True)
    for row in result.metrics[1:]:
        assert 1e-5 < row["mismatch/mean_abs"] < 0.05 and row["ratio/max_abs_log"] < 1e-5
    assert "truncated_importance" in (tmp_path / "run/recipe.yaml").read_text()
    policy = result.policy
    engine = policy.engine._up_to_date()
    for mine, theirs in zip(engine.model.parameters(), policy.model.parameters(), strict=True):
        assert mine.dtype == torch.bfloat16 and torch.equal(mine, theirs.bfloat16())


@pytest.mark.parametrize("model", ["model.lora.r=2", "model.init.family=gpt2"])
def test_whatever_is_trained_reaches_the_copy(model: str) -> None:
    run = build(resolve(overrides=[*DENSE, BF16, model]))
    assert not run.policy.exact
    step(run)
    with torch.no_grad():
        for p in run.policy.trainable_parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    moved = batch_of(run)
    gap = (moved["logp_train"] - moved["logp_old"])[moved["mask"]]
    assert 0 < float(gap.abs().mean()) < 0.03


def test_a_run_that_samples_from_a_copy_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    from coterie.api import resume

    overrides = [*DENSE, BF16, "checkpoint.every=1"]
    whole = start(resolve(overrides=[*overrides, "steps=3"]), tmp_path / "whole", quiet=True)
    start(resolve(overrides=overrides), tmp_path / "run", quiet=True)
    again = resume(tmp_path / "run", steps=3, quiet=True)
    for a, b in zip(whole.policy.model.parameters(), again.policy.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [b.piece.slug for b in resolve(file=tmp_path / "run/recipe.yaml").chain["selection.weights"]] == [
        "truncated_importance"
    ]


def test_the_plan_says_who_samples(cli: Callable) -> None:
    plan = json.loads(cli("plan", *DENSE, "--json").out)
    assert "no correction" in plan["derived"]["sampler"]
    plan = json.loads(cli("plan", *DENSE, BF16, "--json").out)
    assert "truncated importance" in plan["derived"]["sampler"]
    assert ("selection.weights", "truncated_importance") in [(p["slot"], p["piece"]) for p in plan["pieces"]]
    column = next(c for c in plan["columns"] if c["column"] == "logp_train")
    assert column["provider"] == "policy" and column["cost"] == "forward"
    plan = json.loads(cli("plan", *DENSE, BF16, "update.correction=false", "--json").out)
    assert "uncorrected" in plan["derived"]["sampler"]
    assert "is corrected" in json.loads(cli("plan", *DENSE, "--method", "grpo+mis", "--json").out)["derived"]["sampler"]


@pytest.mark.parametrize(
    ("override", "same"),
    [("seed=1", True), ("model.sample_dtype=float32", True), (BF16, False), ("model.dtype=bfloat16", True)],
)
def test_what_the_recipe_says_of_the_sampler(override: str, same: bool) -> None:
    recipe = resolve(overrides=[*DENSE, override])
    assert samples_itself(recipe) == same
    assert (correct(recipe, same) is None) == same


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"model.sample_dtype"):
        build(resolve(overrides=[*DENSE, "model.sample_dtype=int8"]))


# The gradient, over everything that the model can say in two tokens


def everything(run: Run, sampler: Any) -> Rollouts:
    """All completions of one prompt of at most two tokens, weighted by how often `sampler` gives them."""
    prompt = run.prompt(0)
    prompt = Prompt(prompt.tokens, prompt.row, 0)
    (end,) = run.policy.engine.stop_ids
    others = [t for t in range(run.policy.model.config.vocab_size) if t != end]
    paths = [(end, end), *itertools.product(others, [*others, end])]
    tokens = torch.tensor(paths)
    mask = torch.tensor([[True, a != end] for a, _ in paths])
    columns: dict[str, Any] = {
        "groups": torch.zeros(len(paths), dtype=torch.long), "tokens": torch.where(mask, tokens, 0), "mask": mask,
        "lengths": mask.sum(-1), "truncated": mask[:, 1] & (tokens[:, 1] != end),
        "advantages": torch.randn(len(paths), generator=torch.Generator().manual_seed(0)),
        "rewards": torch.zeros(len(paths)), "logp_old": torch.zeros(mask.shape),
    }  # fmt: skip
    rollouts = Rollouts([prompt], columns, Sampling(max_tokens=2), ["" for _ in paths])
    with torch.no_grad():
        old = sampler.score(rollouts)["logp"]
    chance = old.sum(-1).exp()
    assert float(chance.sum()) == pytest.approx(1.0, abs=1e-4)
    return rollouts.with_columns(logp_old=old, weights=chance)


def flat(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in found.values()])


def test_the_corrected_gradient_is_nearer_the_exact_one() -> None:
    """Uncorrected is a ratio against the trainer alone. By sequence, and without a bound, the correction is exact."""
    objective = ["objective.trust_region=unclipped", "objective.aggregation={constant: {length: 1}}",
                 "rollout.max_tokens=2", "update.staleness=1"]  # fmt: skip
    unbounded = "selection.weights.masked_importance.high=1e9"

    def gradient(sampler: Any, method: str, *overrides: str) -> Tensor:
        run = build(resolve(method=method, overrides=[*DENSE, *objective, *overrides]))
        batch = everything(run, run.policy if sampler is None else sampler)
        return flat(gradients(run, loop.select(run, batch, 0, Clock())))

    trained = build(resolve(overrides=[*DENSE, *objective])).policy
    sampler = copy.deepcopy(trained)
    with torch.no_grad():
        for p in sampler.model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    exact = gradient(None, "grpo")

    def off(method: str, *overrides: str) -> float:
        return float((gradient(sampler, method, *overrides) - exact).norm() / exact.norm())

    without = off("grpo", "update.recompute_logp=true")
    assert max(off("grpo+tis"), off("grpo+mis"), off("grpo+seq-mis")) < 0.6 * without
    assert off("grpo+seq-mis", unbounded) < 1e-4
