"""SAGE-GRPO's equaliser: every denoising step has a gradient of the same size (arXiv:2603.21872)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record, record_range
from coterie.pieces import selection


@selection(paper="arXiv:2603.21872")
def equalise_steps(step_gain: Tensor, step_std: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Weights times median(N) / N, with N = step_gain / step_std of a decision and the (lower) median over all
    decisions that have weight. [B] or [B,T] -> [B,T]

    N is how much a Gaussian log-prob moves with the velocity, per unit of its own noise: late steps, which draw little,
    would rule the update. A decision without gain keeps its weight.
    """
    before = finite_or_zero(per_decision(weights, mask), mask)
    live = mask & (before != 0)
    size = finite_or_zero(step_gain, live) / torch.where(live, step_std, 1.0).clamp_min(1e-12)
    moves = live & (size > 0)
    if not bool(moves.any()):
        return before
    factor = torch.where(moves, size[moves].median() / torch.where(moves, size, 1.0), 1.0)
    record("weights/equaliser", factor, live)
    record_range("weights/equaliser", factor, live)
    return before * factor
