"""Of the tokens that were put there, only the uncertain ones teach (IGPO's entropy filter, arXiv:2509.10396)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import selection
from coterie.reductions import group_count, group_position


@selection(paper="arXiv:2509.10396")
def top_given(given: Tensor, entropy: Tensor, mask: Tensor, weights: Tensor, *, share: float = 0.2) -> Tensor:
    """Weight 0 for the given decisions of each rollout but the `share` with the highest entropy. [B] or [B,T] -> [B,T]

    share: rounded down, but one stays wherever there is one; 1 keeps all. entropy is the policy's before the update, by
    the likelihood of the recipe. Among equals the earlier decision stays. Decisions that were sampled keep their
    weight, and those without weight do not count.
    """
    w = finite_or_zero(per_decision(weights, mask), mask)
    put = given & (w != 0)
    label = torch.arange(len(mask), device=mask.device).unsqueeze(-1).expand(mask.shape)[put]
    most = (group_count(label, torch.float64) * share + 1e-9).floor().clamp_min(1)
    kept = torch.ones_like(mask).masked_scatter(put, group_position(-entropy[put], label) < most)
    record("weights/given_share", put.to(weights.dtype), mask)
    record("weights/given_kept_share", kept.to(weights.dtype), put)
    return torch.where(kept, w, torch.zeros_like(w))
