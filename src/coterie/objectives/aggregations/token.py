"""Token mean: every decision counts the same (DAPO, arXiv:2503.14476)."""

from typing import Literal

from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.pieces import aggregation
from coterie.reductions import group_sum


@aggregation(paper="arXiv:2503.14476")
def token(weights: Tensor, mask: Tensor, groups: Tensor, *, scope: Literal["batch", "group"] = "batch") -> Tensor:
    """The coefficient of each decision: its weight over the number of decisions that have one. -> [B,T]

    scope="batch": one mean over the whole update (DAPO's code); "group": the mean within each group, then over groups
    (DAPO's formula; ScaleRL's prompt-level averaging). Groups without any decision left do not count.
    """
    w = finite_or_zero(per_decision(weights, mask), mask)
    active = (w != 0).sum(-1).to(w.dtype)
    if scope == "batch":
        return w / active.sum().clamp_min(1.0)
    in_group = group_sum(active, groups)
    live_groups = len(groups[active > 0].unique())
    return w / in_group.clamp_min(1.0).unsqueeze(-1) / max(live_groups, 1)
