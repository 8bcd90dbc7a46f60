"""Columns on demand: what pieces read of policy, reference, teacher and history is worked out where they read it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from coterie import mismatch
from coterie.clock import Clock
from coterie.columns import BEFORE, CURVATURE, GROUPWISE, per_decision
from coterie.policies.base import Gaussian
from coterie.policies.reference import Reference
from coterie.rollouts import Rollouts
from coterie.run import Run
from coterie.wiring import argument, wanted
from coterie.workers import own_microbatches

_OWN_LOGP = ("logp_old", "logp_train")
"""Columns that are the policy's log-prob at a moment before the update."""


def provide(run: Run, rollouts: Rollouts, slots: str, step: int, clock: Clock) -> Rollouts:
    """Fill in the columns of policy, reference, teacher and history that pieces in these slots read, without gradient.

    In the objective, logp and entropy are left out: they are computed with gradient, once, where they are used. There
    update.recompute_logp replaces the sampler's logp_old by the trainer's, and so do estimates, as logp_train does
    wherever a piece read it.
    """
    if "drift" in wanted(run.recipe, "history", slots) and "drift" not in rollouts:
        with clock.phase("reference"), torch.no_grad():
            drift = run.history.drift(rollouts, lambda past: score_live(run, past, {"logp"})["logp"])
        rollouts = rollouts.with_columns(drift=drift)
    if "kl_ref" in wanted(run.recipe, "policy", slots) and "mean_ref" not in rollouts.media:
        with clock.phase("reference"):
            rollouts = _with_reference_means(run, rollouts)
    if "best_gap" in wanted(run.recipe, "policy", slots) and "velocity_best" not in rollouts.media:
        with clock.phase("reference"):
            rollouts = _with_best_velocities(run, rollouts)
    if "fine_gap" in wanted(run.recipe, "policy", slots) and "velocity_fine" not in rollouts.media:
        with clock.phase("reference"):
            rollouts = _with_fine_velocities(run, rollouts, argument(run.recipe, "fine_gap", step))
    frozen = wanted(run.recipe, "reference", slots) | wanted(run.recipe, "teacher", slots)
    missing = {c for c in frozen if c not in rollouts}
    if slots != "objective":
        missing |= {c for c in wanted(run.recipe, "policy", slots) if c not in rollouts}
    else:
        missing |= {c for c in wanted(run.recipe, "policy", slots) & BEFORE if c not in rollouts}
        again = run.settings.update.recompute_logp or run.estimates
        if again and "logp_train" not in missing and "logp_train" not in rollouts:
            missing.add("logp_old")
    if not missing:
        return rollouts
    with clock.phase("reference"), torch.no_grad():
        rollouts = rollouts.with_columns(**score_live(run, rollouts, missing, step))
    if "logp_train" in missing:
        weights = rollouts["weights"] if "weights" in rollouts else torch.ones_like(rollouts["rewards"])
        mismatch.observe(rollouts["logp_train"], rollouts["logp_old"], weights, rollouts["mask"])
    return rollouts


def _with_reference_means(run: Run, rollouts: Rollouts) -> Rollouts:
    """The rollouts with the reference's mean of every decision beside their states."""
    means = torch.zeros_like(rollouts.media["states"][:, 1:])
    for rows in own_microbatches(run.workers, rollouts, run.settings.update.tokens_per_microbatch):
        means[rows] = run.reference().means(rollouts.rows(rows))
    return replace(rollouts, media={**rollouts.media, "mean_ref": run.workers.sum(means)})


def _with_best_velocities(run: Run, rollouts: Rollouts) -> Rollouts:
    """The rollouts with the velocity on the best path of their group beside the states of their decisions."""
    found = torch.zeros_like(rollouts.media["states"][:, 1:])
    for rows in own_microbatches(run.workers, rollouts, run.settings.update.tokens_per_microbatch, True):
        found[rows] = cast(Gaussian, run.policy).best_velocities(rollouts.rows(rows))
    return replace(rollouts, media={**rollouts.media, "velocity_best": run.workers.sum(found)})


def _with_fine_velocities(run: Run, rollouts: Rollouts, substeps: int) -> Rollouts:
    """The rollouts with the reference's velocity over each step, walked in finer ones, beside their states."""
    found = torch.zeros_like(rollouts.media["states"][:, 1:])
    for rows in own_microbatches(run.workers, rollouts, run.settings.update.tokens_per_microbatch):
        found[rows] = run.reference().fine_velocities(rollouts.rows(rows), substeps)
    return replace(rollouts, media={**rollouts.media, "velocity_fine": run.workers.sum(found)})


def score_live(
    run: Run, rollouts: Rollouts, columns: set[str], step: int = 0, reference: Reference | None = None
) -> dict[str, Tensor]:
    """Columns of the rollouts that have weight, 0 elsewhere, by micro-batches. [B,T] each. logp_ref is the run's
    reference's, unless another is given.
    """
    policy: Any = run.policy  # a recipe that reads what its kind does not have was refused
    weights = rollouts["weights"] if "weights" in rollouts else torch.ones_like(rollouts["rewards"])
    alive = (per_decision(weights, rollouts["mask"]) != 0).any(-1).nonzero().squeeze(-1)
    out = {name: torch.zeros_like(rollouts["logp_old"]) for name in columns}
    own = {"logp" if c in _OWN_LOGP else c for c in columns - {"logp_ref", "logp_teacher"} - (BEFORE - {"logp_train"})}
    budget, shared = run.settings.update.tokens_per_microbatch, run.policy.shares_prefix
    for rows in own_microbatches(run.workers, rollouts.rows(alive), budget, bool(own & GROUPWISE), shared):
        micro = rollouts.rows(alive[rows])
        found = run.policy.score(micro, own) if own else {}
        found = found | ((reference or run.reference()).score(micro) if "logp_ref" in columns else {})
        if "logp_min_p" in columns:
            found["logp_min_p"] = policy.score_min_p(micro, argument(run.recipe, "logp_min_p", step))
        if columns & CURVATURE:
            found |= policy.score_curvature(micro)
        if "logp_tempered" in columns:
            factor = argument(run.recipe, "logp_tempered", step)
            spec = replace(micro.sampling, temperature=micro.sampling.temperature * factor)
            found["logp_tempered"] = run.policy.score(replace(micro, sampling=spec), {"logp"})["logp"]
        found = found | (run.teacher().score(micro) if "logp_teacher" in columns else {})
        for name in columns:
            value = found["logp" if name in _OWN_LOGP else name]
            out[name][alive[rows], : value.shape[1]] = value
    return {name: run.workers.sum(value) for name, value in sorted(out.items())}  # 0 but for one worker
