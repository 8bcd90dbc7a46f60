"""The update: coefficients fixed once for the whole optimizer step, then micro-batches by token budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from coterie import mismatch
from coterie.clock import Clock
from coterie.columns import BEFORE, CURVATURE, GROUPWISE, SHOWN, finite_or_zero, per_decision
from coterie.errors import PolicyError, RecipeError, RunError
from coterie.metrics import Collector, collect
from coterie.microbatches import microbatches
from coterie.policies.base import Estimating, Gaussian, Showing
from coterie.policies.reference import Reference
from coterie.rollouts import Rollouts
from coterie.run import Run, optimizer_at
from coterie.schedules import Schedule
from coterie.streams import stream
from coterie.wiring import argument, wanted
from coterie.workers import gather_metrics

_OWN_LOGP = ("logp_old", "logp_train")
"""Columns that are the policy's log-prob at a moment before the update."""


def update(run: Run, rollouts: Rollouts, step: int, clock: Clock) -> None:
    """Epochs × mini-batches of optimizer steps on one batch. Rows without weight are not run through the model."""
    passes = [provide(run, noisy, "objective", step, clock) for noisy in _epochs(run, rollouts)]
    collector, share = Collector(), _share(run, step)
    norms: list[float] = []
    losses: list[float] = []
    with clock.phase("learn"):
        for epoch in range(run.settings.update.epochs):
            for number, part in enumerate(_minibatches(run, passes[epoch % len(passes)], step, epoch)):
                coefficients = run.recipe.single["objective.aggregation"](run.table(part, step), step)
                coefficients = coefficients * (1.0 - share)
                alive = _teaches(run, part, coefficients)
                if not bool(alive.any()) and not share:
                    continue
                part = part.rows(alive)
                coefficients = coefficients[alive][:, : part["mask"].shape[1]]
                check = run.first_update and epoch == 0 and number == 0 and bool(alive.any())
                shown = _shown(run, step, epoch, number) if share else None
                evaluate = partial(_evaluate, run, part, coefficients, share, shown, step, collector)
                loss, norm = _step(run, step, evaluate, collector, check)
                losses.append(loss)
                if norm is not None:
                    norms.append(norm)
                run.first_update = run.first_update and not bool(alive.any())
    run.metrics |= gather_metrics(run.workers, collector).means()
    if norms:
        run.metrics["grad/norm"] = sum(norms) / len(norms)
    if losses:
        run.metrics["loss/total"] = sum(losses) / len(losses)
    run.metrics["update/optimizer_steps"] = float(len(losses))


def _evaluate(
    run: Run,
    part: Rollouts,
    coefficients: Tensor,
    share: float,
    shown: Rollouts | None,
    step: int,
    collector: Collector,
    gradient: bool,
    check: bool = False,
) -> float:
    """The loss of one optimizer step at the weights as they are, by micro-batches; `gradient` leaves its gradient in
    the parameters. `check` demands that the policy is the sampler's. A `share` of it is the imitation of `shown`.
    """
    run.optimizer.zero_grad(set_to_none=True)
    budget, shared = run.settings.update.tokens_per_microbatch, run.policy.shares_prefix
    total = 0.0 if shown is None else imitate(run, share, shown, step, collector, gradient)
    with torch.set_grad_enabled(gradient):
        micros = _own_microbatches(run, part, budget, run.whole_groups, shared)
        idle = run.learner.idle(len(micros))
        for rows in micros:
            micro = part.rows(rows)
            loss = _loss(run, micro, coefficients[rows][:, : micro["mask"].shape[1]], step, collector)
            if check:
                _check_on_policy(run, collector)
            if gradient:
                loss.backward()
            total += float(loss.detach())
        for _ in range(idle):
            _pass_idly(run, part, gradient)
    if gradient:
        run.learner.sum_gradients(run.workers)
    return float(run.workers.sum(torch.tensor(total, dtype=torch.float64)))


def _pass_idly(run: Run, part: Rollouts, gradient: bool) -> None:
    """Run one rollout through the model for nothing: others have more to do, and all must pass together."""
    found = run.learner.score(part.rows(torch.tensor([0], device=part["groups"].device)), {"logp"})["logp"]
    if gradient:
        (found.nan_to_num() * 0.0).sum().backward()


def _epochs(run: Run, rollouts: Rollouts) -> Iterator[Rollouts]:
    """The batch as each epoch sees it: once for all, or with noise of its own where log-probs are estimates."""
    yield rollouts
    if _estimates(run):
        for epoch in range(1, run.settings.update.epochs):
            yield cast(Estimating, run.policy).renoise(rollouts, epoch)


def _estimates(run: Run) -> bool:
    return getattr(run.policy, "estimates", False)


def _share(run: Run, step: int) -> float:
    """The share of imitation in the loss at this step; 0 where the recipe imitates nobody."""
    imitation = run.recipe.single.get("objective.imitation")
    if imitation is None:
        return 0.0
    share = float(imitation.at(step)["mu"])
    if not 0.0 <= share <= 1.0:
        raise RecipeError(f"the share of imitation is {share:g}", where=f"objective.imitation.mu, step {step}")
    run.metrics["imitation/share"] = share
    return share


def _shown(run: Run, step: int, epoch: int, number: int) -> Rollouts:
    """The demonstrations of one optimizer step."""
    seed = stream(run.settings.seed, "demonstrations", step, epoch, number)
    return run.demonstrations().draw(run.settings.draw.demonstrations, run.prompt, seed)


def imitate(run: Run, share: float, shown: Rollouts, step: int, collector: Collector, gradient: bool = True) -> float:
    """`share` times the imitation's mean over the tokens of demonstrations; `gradient` leaves its gradient in the
    parameters, added to what is there.
    """
    piece, s = run.recipe.single["objective.imitation"], run.settings
    count, total = shown["lengths"].sum().clamp_min(1), 0.0
    read = {"logp"} | ({"entropy"} & set(piece.piece.required))
    with torch.set_grad_enabled(gradient):
        for rows in microbatches(shown, s.update.tokens_per_microbatch, False, run.policy.shares_prefix):
            micro = shown.rows(rows)
            table = {**micro.columns, "step": step, "budget": s.rollout.max_tokens, **run.policy.score(micro, read)}
            with collect(collector, micro["mask"]):
                loss = _aggregate(piece(table, step), micro["mask"] * (share / count))
            if not bool(torch.isfinite(loss)):
                raise RunError(
                    "the loss of imitation is not finite", hint="look at the demonstrations; lower optimizer.lr"
                )
            if gradient:
                loss.backward()
            total += float(loss.detach())
    return total


def _teaches(run: Run, part: Rollouts, coefficients: Tensor) -> Tensor:
    """Rows that can have a gradient. Where the objective is 0 without an advantage and no term is added, rows without
    one are left out too: their share of the gradient is exactly 0. [B] bool
    """
    single = run.recipe.single
    objective = single.get("objective.loss") or single["objective.trust_region"]
    acts = coefficients != 0
    if objective.piece.zero_without_advantage and not run.recipe.chain["objective.terms"]:
        acts &= per_decision(part["advantages"], part["mask"]) != 0
    return acts.any(-1)


def _minibatches(run: Run, rollouts: Rollouts, step: int, epoch: int) -> Iterator[Rollouts]:
    count = run.settings.update.minibatches
    if count == 1:
        yield rollouts
        return
    groups = torch.unique(rollouts["groups"]).cpu().numpy()
    order = np.random.default_rng(stream(run.settings.seed, "minibatch", step, epoch)).permutation(groups)
    for chunk in np.array_split(order, count):
        members = torch.isin(rollouts["groups"], torch.as_tensor(chunk, device=rollouts["groups"].device))
        if bool(members.any()):
            yield rollouts.rows(members)


def _own_microbatches(run: Run, rollouts: Rollouts, *how: Any) -> list[Tensor]:
    """Row indices of the parts that this worker runs through the model."""
    if run.workers.size == 1:
        return microbatches(rollouts, *how)
    mine = run.workers.rows(rollouts)
    return [mine[rows] for rows in microbatches(rollouts.rows(mine), *how)] if len(mine) else []


def _loss(run: Run, micro: Rollouts, coefficients: Tensor, step: int, collector: Collector) -> Tensor:
    """The micro-batch's share of the loss; shares add up to the loss of the update exactly."""
    single, mask = run.recipe.single, coefficients != 0
    table = run.table(micro, step)
    scored = micro.with_columns(mask=mask) if run.policy.independent else micro
    table |= run.learner.score(scored, run.score_columns)
    if shown := sorted(wanted(run.recipe, "policy", "objective") & SHOWN):
        table |= cast(Showing, run.policy).score_shown(micro, argument(run.recipe, shown[0], step))
    if "logp_train" in table:  # its difference from the sampler's is in the weights: the ratio is what the update moved
        table["logp_old"] = table["logp_train"]
    table["mask"] = mask  # one loss mask: a dropped decision is in no ratio, surrogate or term
    with collect(collector, mask):
        if "objective.loss" in single:
            value = single["objective.loss"](table, step)
        else:
            table["ratio"] = single["objective.ratio"](table, step)
            collector.add("ratio/mean", table["ratio"], None)
            value = -single["objective.trust_region"](table, step)
        loss = _aggregate(value, coefficients)
        for term in run.recipe.chain["objective.terms"]:
            loss = loss + _aggregate(term(table, step), coefficients)
        _observe(collector, table, mask)
    if not bool(torch.isfinite(loss)):
        raise RunError(
            "the loss is not finite", hint="the last checkpoint is intact; lower optimizer.lr or look at rewards"
        )
    return loss


def _aggregate(value: Tensor, coefficients: Tensor) -> Tensor:
    if value.dim() == 1:
        return (value * coefficients.sum(-1)).sum()
    return (finite_or_zero(value, coefficients != 0) * coefficients).sum()


@torch.no_grad()
def _observe(collector: Collector, table: dict[str, Any], mask: Tensor) -> None:
    """How far the log-probs of the ratio's denominator are from the current ones. They are the sampler's, so that this
    is the mismatch of sampler and trainer, unless that was measured, and is corrected, apart.
    """
    gap = finite_or_zero(table["logp"].detach() - table["logp_old"], mask)
    collector.peak("ratio/max_abs_log", float(gap.abs().max()))
    if "logp_train" not in table:
        collector.add("mismatch/mean_abs", gap.abs(), mask)
        collector.add("mismatch/k3", gap.exp() - 1 - gap, mask)
        collector.peak("mismatch/max_abs", float(gap.abs().max()))
    if "entropy" in table:
        collector.add("entropy/mean", table["entropy"].detach(), mask)


def _check_on_policy(run: Run, collector: Collector) -> None:
    """The first update is on policy: every ratio must be 1, or sampler and trainer do not agree on the policy.

    Late batches may differ, those of an engine that says so, and recorded ones; but where the difference is corrected,
    the ratio is against the trainer's own log-probs, and must be 1 all the same.
    """
    gap = collector.peaks["ratio/max_abs_log"]
    corrected = "logp_train" in wanted(run.recipe, "policy")
    late = run.settings.update.staleness > 0 or run.settings.scale.max_staleness > 0 or run.recorded is not None
    if not corrected and (late or not run.policy.exact):
        return
    if gap > run.policy.tolerance:
        other = "those it gave just before" if corrected else "the sampler's"
        raise PolicyError(
            f"the trainer's log-probs differ from {other} by {gap:.3g} on the first update (at most "
            f"{run.policy.tolerance:g} is rounding)",
            hint="sampler and trainer must use the same weights, precision and sampling spec; run `coterie doctor`",
        )


def _step(
    run: Run, step: int, evaluate: Callable[..., float], collector: Collector, check: bool
) -> tuple[float, float | None]:
    """One step of the optimizer: the loss, and the norm of its gradient where there is one.

    An optimizer that asks for it gets a closure, which evaluates the same micro-batches at whatever weights it has set;
    metrics are then means over its evaluations, and the gradient is not clipped.
    """
    asks = getattr(run.optimizer, "asks", None)
    norms: list[float] = []
    if asks is None:
        loss = evaluate(gradient=True, check=check)
        norms.append(_gradient_norm(run, run.settings.update.max_grad_norm))
    elif check:
        evaluate(gradient=False, check=True)
    _follow_schedules(run, step)
    with collect(collector):
        if asks is None:
            run.optimizer.step()
        else:

            def closure() -> float:
                value = evaluate(gradient=asks == "gradient")
                if asks == "gradient":
                    norms.append(_gradient_norm(run, float("inf")))
                return value

            loss = float(run.optimizer.step(closure))
    run.learner.stepped()
    run.policy.version += 1
    return loss, norms[0] if norms else None


def _gradient_norm(run: Run, limit: float) -> float:
    """Clip the gradient to a norm; returns what it was."""
    norm = run.learner.gradient_norm(limit)
    if not np.isfinite(norm):
        raise RunError("the gradient is not finite", hint="the last checkpoint is intact; lower optimizer.lr")
    return norm


def _follow_schedules(run: Run, step: int) -> None:
    if any(isinstance(value, Schedule) for value in run.recipe.single["optimizer"].settings.values()):
        now = optimizer_at(run.recipe, run.learner.parameters()[:1], step).defaults
        for group in run.optimizer.param_groups:
            group.update(now)
    run.metrics["lr"] = float(run.optimizer.param_groups[-1]["lr"])


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
        again = run.settings.update.recompute_logp or _estimates(run)
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
    for rows in _own_microbatches(run, rollouts, run.settings.update.tokens_per_microbatch):
        means[rows] = run.reference().means(rollouts.rows(rows))
    return replace(rollouts, media={**rollouts.media, "mean_ref": run.workers.sum(means)})


def _with_best_velocities(run: Run, rollouts: Rollouts) -> Rollouts:
    """The rollouts with the velocity on the best path of their group beside the states of their decisions."""
    found = torch.zeros_like(rollouts.media["states"][:, 1:])
    for rows in _own_microbatches(run, rollouts, run.settings.update.tokens_per_microbatch, True):
        found[rows] = cast(Gaussian, run.policy).best_velocities(rollouts.rows(rows))
    return replace(rollouts, media={**rollouts.media, "velocity_best": run.workers.sum(found)})


def _with_fine_velocities(run: Run, rollouts: Rollouts, substeps: int) -> Rollouts:
    """The rollouts with the reference's velocity over each step, walked in finer ones, beside their states."""
    found = torch.zeros_like(rollouts.media["states"][:, 1:])
    for rows in _own_microbatches(run, rollouts, run.settings.update.tokens_per_microbatch):
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
    for rows in _own_microbatches(run, rollouts.rows(alive), budget, bool(own & GROUPWISE), shared):
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
