"""D3S: of the whole batch the rollouts whose advantages differ most are trained on (arXiv:2509.22115)."""

import math

import torch
from torch import Tensor

from coterie.columns import in_shape_of, per_decision
from coterie.metrics import record
from coterie.pieces import selection
from coterie.reductions import masked_mean


@selection(paper="arXiv:2509.22115")
def max_variance(advantages: Tensor, mask: Tensor, weights: Tensor, *, share: float = 0.5) -> Tensor:
    """Weight 0 for all but the `share` of rollouts (rounded up) with the largest variance of advantages among them.
    [B] or [B,T] -> the same

    The best choice is some of the lowest and the rest from the highest, and all such splits are tried; of equally good
    ones that with most from the highest. Equal advantages stand in order of row. Advantages are not computed anew. One
    a decision counts by its mean. Rollouts without weight do not count.
    """
    live = (mask & (per_decision(weights, mask) != 0)).any(-1)
    a = (advantages if advantages.dim() == 1 else masked_mean(advantages, mask))[live].double()
    order, n = a.argsort(stable=True), len(a)
    count = max(0, math.ceil(n * share - 1e-9))
    kept = torch.zeros_like(a)
    if count:
        x = a[order]
        low, below = torch.arange(count + 1, device=a.device), torch.zeros(1, dtype=a.dtype, device=a.device)
        once, twice = (torch.cat([below, y.cumsum(0)]) for y in (x, x * x))

        def both(total: Tensor) -> Tensor:
            return (total[low] + total[n] - total[n - count + low]) / count

        variance = both(twice) - both(once) ** 2
        best = int((variance >= variance.max() - 1e-9 * variance.max().clamp_min(1.0)).nonzero()[0])
        kept[order[:best]] = 1.0
        kept[order[n - count + best :]] = 1.0
        record("weights/advantage_variance", float(variance[best]))
    keep = torch.zeros_like(live, dtype=weights.dtype).masked_scatter(live, kept.to(weights.dtype))
    record("weights/rollout_share", keep)
    return weights * in_shape_of(keep, weights)
