"""AEPO's credit: of rollouts at another temperature the good ones are imitated, the others not (arXiv:2510.08141)."""

import torch
from torch import Tensor

from coterie.columns import in_shape_of
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import masked_mean


@credit(paper="arXiv:2510.08141")
def tempered_reinforce(advantages: Tensor, heat: Tensor, mask: Tensor, *, threshold: float = 0.05) -> Tensor:
    """1 for rollouts drawn at another temperature whose advantage exceeds `threshold`, 0 for others drawn so; rollouts
    at the run's own temperature (heat 1) keep theirs. [B] or [B,T] -> the same

    Of an advantage a decision the rollout's mean is compared.
    """
    own = advantages if advantages.dim() == 1 else masked_mean(advantages, mask)
    tempered = heat != 1
    record("aepo/good_share", (own > threshold).to(heat.dtype), tempered)
    good = in_shape_of((own > threshold).to(advantages.dtype), advantages)
    return torch.where(in_shape_of(tempered, advantages), good, advantages)
