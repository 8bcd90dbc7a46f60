"""TempFlow-GRPO's weights: a step counts as much as it draws noise (arXiv:2508.04324)."""

from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import selection


@selection(paper="arXiv:2508.04324")
def weigh_noise(step_std: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Weights times the step's noise over its mean, which is taken over all decisions that have weight: their mean
    weight stays what it was where it is the same for all. [B] or [B,T] -> [B,T]

    The gradient of a Gaussian log-prob is as 1/std, so late steps, which draw little noise, would rule the update.
    """
    before = finite_or_zero(per_decision(weights, mask), mask)
    live = mask & (before != 0)
    std = finite_or_zero(step_std, live)
    factor = std / (std.sum() / live.sum().clamp_min(1)).clamp_min(1e-12)
    record("weights/noise", factor, live)
    return before * factor
