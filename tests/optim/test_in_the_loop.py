"""Optimizers in Coterie's own update: what a closure evaluates, what the metrics say, and resuming."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie import methods
from coterie.build import build
from coterie.clock import Clock
from coterie.errors import PolicyError
from coterie.optim.replay import directions
from coterie.registry import all_pieces
from coterie.run import Run
from coterie.streams import stream
from coterie.update import update
from tests.test_update import batch_of, gradients, make

SLUGS = [p.slug for p in all_pieces("optimizer") if p.module.startswith("coterie.")]
ASKING = ["mezo", "sparse_mezo", "zeroth_order", "zo_ranksgd", "cbo", "n_pg_igt", "harpg"]
METHODS = [slug for slug in methods.slugs() if "optimizer" in methods.load(slug).layer.tree]


def weights(run: Run) -> list[Tensor]:
    return [p.detach().clone() for p in run.policy.trainable_parameters()]


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.flatten().double() for t in tensors])


def gradient_of(run: Run, batch: Any, *, padding: bool = False) -> Tensor:
    """The gradient of the update, as an optimizer that takes no closure gets it. With `padding`, the embedding of the
    padding token has its own too, which torch leaves out wherever the token is read.
    """
    other = make()
    if padding:
        other.policy.model.get_input_embeddings().padding_idx = None
    for p, q in zip(other.policy.trainable_parameters(), run.policy.trainable_parameters(), strict=True):
        p.data.copy_(q.data)
    gradients(other, batch)
    return flat(p.grad for p in other.policy.trainable_parameters())


def test_a_look_ahead_optimizer_gets_the_update_s_gradient() -> None:
    """The first step of N-PG-IGT is lr long, against the gradient that AdamW would be given."""
    run = make("optimizer={n_pg_igt: {lr: 1.0e-2}}")
    batch, before = batch_of(run), weights(run)
    g = gradient_of(run, batch)
    update(run, batch, 0, Clock())
    moved = flat(weights(run)) - flat(before)
    torch.testing.assert_close(moved, -1e-2 * g / g.norm(), rtol=1e-3, atol=1e-6)
    assert run.metrics["grad/norm"] == pytest.approx(float(g.norm()), rel=1e-4)
    assert run.metrics["update/optimizer_steps"] == 1 and run.policy.version == 1


@pytest.mark.parametrize("budget", [10**9, 60, 1])
def test_a_zeroth_order_optimizer_gets_the_update_s_loss_however_it_is_cut(budget: int) -> None:
    """Its step goes along its direction by the slope of the update's loss: <gradient, z>."""
    run = make("optimizer={mezo: {lr: 1.0, eps: 1.0e-4}}", f"update.tokens_per_microbatch={budget}")
    batch, before = batch_of(run), weights(run)
    g = gradient_of(run, batch, padding=True)
    update(run, batch, 0, Clock())
    z = flat(directions(before, stream(0, "direction", 0, 0, 0)))
    slope = float(g @ z)
    assert abs(slope) > 1e-3
    moved = flat(weights(run)) - flat(before)
    torch.testing.assert_close(moved, -slope * z, rtol=0.03, atol=0.03 * abs(slope))
    assert run.metrics["zeroth_order/slope"] == pytest.approx(abs(slope), rel=0.05)
    assert "grad/norm" not in run.metrics
    assert all(p.grad is None for p in run.policy.trainable_parameters())


def test_losses_alone_are_evaluated_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make("optimizer=mezo")
    batch, seen = batch_of(run), []
    score = run.policy.score

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(torch.is_grad_enabled())
        return score(*args, **kwargs)

    monkeypatch.setattr(run.policy, "score", spy)
    update(run, batch, 0, Clock())
    assert len(seen) == 3 and not any(seen), "the check of the first update, ahead, and back"
    update(run, batch, 1, Clock())
    assert len(seen) == 5


@pytest.mark.parametrize("optimizer", ASKING)
def test_a_sampler_that_is_not_the_trainer_is_noticed_all_the_same(optimizer: str) -> None:
    run = make(f"optimizer={optimizer}")
    batch = batch_of(run)
    with torch.no_grad():
        for p in run.policy.trainable_parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
    with pytest.raises(PolicyError, match=r"differ from the sampler's by .*first update"):
        update(run, batch, 0, Clock())


def test_a_conservative_step_does_not_raise_the_update_s_loss() -> None:
    run = make("optimizer={zeroth_order: {lr: 0.05, eps: 1.0e-2, conservative: true}}")
    batch, least = batch_of(run), []
    for step in range(6):
        update(run, batch, step, Clock())
        probe = make("optimizer={zeroth_order: {lr: 0.0, sides: 1}}")
        for p, q in zip(probe.policy.trainable_parameters(), run.policy.trainable_parameters(), strict=True):
            p.data.copy_(q.data)
        probe.first_update = False
        update(probe, batch, 0, Clock())
        least.append(probe.metrics["loss/total"])
    assert all(now <= before + 1e-6 for before, now in itertools.pairwise(least)) and least[-1] < -1e-3


def test_schedules_move_a_closure_optimizer_too() -> None:
    run = make("optimizer={mezo: {lr: {from: 0.5, to: 0, over: 2}, eps: {from: 0.01, to: 0.001, over: 2}}}")
    batch = batch_of(run)
    for step, (lr, eps) in enumerate([(0.5, 0.01), (0.25, 0.0055), (0.0, 0.001)]):
        update(run, batch, step, Clock())
        group = run.optimizer.param_groups[0]
        assert (group["lr"], group["eps"], group["steps"]) == (pytest.approx(lr), pytest.approx(eps), step + 1)
        assert run.metrics["lr"] == pytest.approx(lr)


def test_half_precision_is_shifted_in_its_float32_copies() -> None:
    """An eps below what bfloat16 can tell apart would show no slope in the weights themselves; the copies keep it."""
    run = make("optimizer={mezo: {lr: 1.0e-2, eps: 1.0e-2}}", "model.dtype=bfloat16")
    batch, before = batch_of(run), weights(run)
    update(run, batch, 0, Clock())
    masters = run.optimizer.masters  # type: ignore[union-attr]
    for parameter, master in zip(run.policy.trainable_parameters(), masters, strict=True):
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, master.bfloat16())
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))


@pytest.mark.parametrize("slug", SLUGS)
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(slug: str, tmp_path: Path) -> None:
    settings = {
        "spam": "{reset_every: 3, warmup: 1, start: 2, density: 0.5}", "hesso": "{period: 2, periods: 2}",
        "zeroth_order": "{rule: adam}", "cbo": "{particles: 3}",
    }.get(slug, "{}")  # fmt: skip
    overrides = (f"optimizer={{{slug}: {settings}}}", "optimizer.lr=1e-2")
    run = make(*overrides)
    batch = batch_of(run)
    for step in range(4):
        if step == 2:
            run.save(tmp_path)
        update(run, batch, step, Clock())
    again = build(run.recipe, tmp_path)
    assert any(not torch.equal(a, b) for a, b in zip(weights(again), weights(run), strict=True))
    for step in (2, 3):
        update(again, batch, step, Clock())
    assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(run), strict=True))


@pytest.mark.parametrize("slug", METHODS)
def test_the_metrics_of_its_page_are_recorded(slug: str) -> None:
    run = make(*(["optimizer.line_search=2"] if slug == "zo-ranksgd" else []), method=f"grpo+{slug}")
    update(run, batch_of(run), 0, Clock())
    assert set(methods.load(slug).metrics) <= run.metrics.keys()


def test_methods_of_optimizers_are_all_here() -> None:
    assert {"spam", "cosmos", "mezo", "sparse-mezo", "zo-ranksgd", "cbo", "n-pg-igt", "harpg", "hesso"} <= set(METHODS)
    assert set(ASKING) <= set(SLUGS)
