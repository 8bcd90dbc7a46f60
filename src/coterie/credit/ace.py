"""ACE: errors that training has made confident are pushed down harder (arXiv:2602.21420)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import in_shape_of
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import masked_mean, masked_sum


@credit(paper="arXiv:2602.21420")
def ace(
    advantages: Tensor,
    logp_old: Tensor,
    logp_ref: Tensor,
    mask: Tensor,
    correct: Tensor | None = None,
    *,
    alpha: float = 1.0,
    confidence: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Negative advantages times 1 + alpha softplus(c), c the rollout's log-ratio to the reference. [B], [B,T] -> same

    confidence: c is the "mean" or the "sum" of logp_old - logp_ref over the rollout's decisions; a sum over hundreds
    of them is in the hundreds. It is a constant of the batch. Where the task has a verifier, correct rollouts are left
    alone even if their advantage is negative. An advantage of 0 stays 0.
    """
    shift = (masked_mean if confidence == "mean" else masked_sum)(logp_old - logp_ref, mask).to(advantages.dtype)
    wrong = advantages < 0
    if correct is not None:
        wrong = wrong & in_shape_of(~correct, advantages)
    rows = wrong if wrong.dim() == 1 else (wrong & mask).any(-1)
    record("ace/confidence", shift, rows)
    record("ace/overconfident_share", (shift > 0).to(shift.dtype), rows)
    softplus = torch.logaddexp(shift, torch.zeros_like(shift))
    return torch.where(wrong, advantages * in_shape_of(1 + alpha * softplus, advantages), advantages)
