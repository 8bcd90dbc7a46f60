"""The update: coefficients fixed once for the whole optimizer step, then micro-batches by token budget."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from coterie.clock import Clock
from coterie.columns import SHOWN, finite_or_zero, per_decision
from coterie.errors import PolicyError, RecipeError, RunError
from coterie.metrics import Collector, collect
from coterie.microbatches import microbatches
from coterie.optimizer_step import optimizer_step
from coterie.policies.base import Estimating, Showing
from coterie.provide import provide
from coterie.rollouts import Rollouts
from coterie.run import Run
from coterie.streams import stream
from coterie.wiring import argument, wanted
from coterie.workers import gather_metrics, own_microbatches


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
                loss, norm = optimizer_step(run, step, evaluate, collector, check)
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
        micros = own_microbatches(run.workers, part, budget, run.whole_groups, shared)
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
    if run.estimates:
        for epoch in range(1, run.settings.update.epochs):
            yield cast(Estimating, run.policy).renoise(rollouts, epoch)


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
    s = run.settings
    late = s.update.staleness or s.scale.max_staleness or s.apart.staleness or run.recorded is not None
    if not corrected and (late or not run.policy.exact):
        return
    if gap > run.policy.tolerance:
        other = "those it gave just before" if corrected else "the sampler's"
        raise PolicyError(
            f"the trainer's log-probs differ from {other} by {gap:.3g} on the first update (at most "
            f"{run.policy.tolerance:g} is rounding)",
            hint="sampler and trainer must use the same weights, precision and sampling spec; run `coterie doctor`",
        )
