"""One step of the optimizer: the gradient is clipped, schedules are followed, and it may ask for more evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from coterie.errors import RecipeError, RunError
from coterie.metrics import Collector, collect
from coterie.recipe import Recipe
from coterie.run import Run
from coterie.schedules import Schedule


def optimizer_step(
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


def optimizer_at(recipe: Recipe, parameters: Sequence[torch.Tensor], step: int) -> torch.optim.Optimizer:
    """The recipe's optimizer as its settings are at a step. Raises RecipeError for a value that it does not take."""
    try:
        return recipe.single["optimizer"]({"parameters": parameters}, step)
    except ValueError as error:
        raise RecipeError(str(error), where=f"optimizer={recipe.single['optimizer'].name}, step {step}") from None
