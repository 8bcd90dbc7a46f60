"""TW-GRPO: positions at which the group's rollouts differ weigh more (arXiv:2505.24718)."""

import torch
from torch import Tensor

from coterie.columns import per_decision
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_extreme


@credit(paper="arXiv:2505.24718", shape="B T")
def spread_weights(advantages: Tensor, spread: Tensor, groups: Tensor, mask: Tensor, *, alpha: float = 1.7) -> Tensor:
    """Advantages times 1 + (alpha - 1) x, x the spread of each decision between 0 and 1. [B] or [B,T] -> [B,T]

    x is the spread minus the group's smallest, over the range of the group's; 0 where that is nothing. The most telling
    positions of a group weigh `alpha`, those at which all its rollouts would have said the same weigh 1.
    """
    a = per_decision(advantages, mask)
    most = group_extreme(torch.where(mask, spread, -torch.inf).amax(-1), groups, True).unsqueeze(-1)
    least = group_extreme(torch.where(mask, spread, torch.inf).amin(-1), groups, False).unsqueeze(-1)
    differs = mask & (most > least)
    x = torch.where(differs, (spread - least) / torch.where(differs, most - least, 1.0), 0.0).to(a.dtype)
    record("tw/spread", spread, mask)
    record("tw/weight", 1 + (alpha - 1) * x, mask)
    return torch.where(mask, a * (1 + (alpha - 1) * x), 0.0)
