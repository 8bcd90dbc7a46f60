"""CAPO: decisions whose own step would change objective or policy too much get no gradient (arXiv:2510.00819)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import selection


@selection(paper="arXiv:2510.00819")
def bounded_curvature(
    hidden_square: Tensor,
    score_square: Tensor,
    score_variance: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    *,
    lr: float = 1.5e-5,
    max_objective: float = 1e-2,
    max_policy: float = 1e-4,
) -> Tensor:
    """Weight 0 for decisions beyond either bound, the weight they had for the others. [B] or [B,T] -> [B,T]

    Imagined is a step of plain gradient ascent of size `lr` at the output layer on one decision alone. Foreseen to
    second order are the change of its part of the objective, whose size must be below max_objective, and that of the
    policy, half the squared change of the decision's log-prob, below max_policy. With s = |v|^2 (score_square), h =
    |h|^2 (hidden_square) and c the score_variance: lr A^2 s h + lr^2/2 A^3 h^2 (s^2 - c), and lr^2/2 (A s h)^2.
    Everything is detached. Without an advantage a decision stays; infinite bounds change nothing.
    """
    live = mask & (per_decision(weights, mask) != 0)
    a, h, s, c = (
        finite_or_zero(x, live) for x in (per_decision(advantages, mask), hidden_square, score_square, score_variance)
    )
    climb = a * s * h  # the change of the log-prob, over lr
    objective = (lr * a * climb + lr * lr / 2 * a * (climb * climb - (a * h) ** 2 * c)).abs()
    policy = (lr * climb) ** 2 / 2
    kept = live & (objective < max_objective) & (policy < max_policy)
    record("capo/rejected_share", (~kept).to(weights.dtype), live)
    record("capo/objective_change", objective, live)
    record("capo/policy_change", policy, live)
    return torch.where(kept, per_decision(weights, mask), torch.zeros_like(a).to(weights.dtype))
