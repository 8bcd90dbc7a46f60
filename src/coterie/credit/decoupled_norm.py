"""GDPO's advantage: each reward is compared with the group by itself before they are added up (arXiv:2601.05242)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.columns import component
from coterie.credit.group_norm import group_norm
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_is_constant


@credit(paper="arXiv:2601.05242", min_group=2)
def decoupled_norm(
    components: Mapping[str, Tensor],
    reward_weights: Mapping[str, float],
    groups: Tensor,
    *,
    gates: dict[str, str] | None = None,
    gate_at: float = 1.0,
    whiten: bool = True,
    ddof: int = 1,
    eps: float = 1e-4,
) -> Tensor:
    """The weighted sum of the components' group z-scores, over its standard deviation in the batch. [B] -> [B]

    z = (R_k - mean) / (std + eps) over the rollouts of the group that have component k; one without it (NaN) gets 0
    there, and so do all where it is equal throughout the group. Weights act on z, not on raw rewards. whiten: divide
    the sum by its standard deviation over the update (ddof 1, + eps); its mean is 0 in each group already.
    gates: {easy: hard} makes component `easy` 0 where component `hard` is below gate_at, before it is normalised.
    """
    values = dict(components)
    for easy, hard in (gates or {}).items():
        gated, by = (component(components, name, "decoupled_norm") for name in (easy, hard))
        values[easy] = torch.where((by >= gate_at) | gated.isnan(), gated, torch.zeros_like(gated))
    total = torch.zeros_like(next(iter(values.values())))
    for name, value in values.items():
        z, heard = z_score(value, groups, ddof, eps)
        total = total + reward_weights[name] * z
        record("gdpo/silent_share", ~heard)
    if not whiten or len(total) < 2:
        return total
    return total / (total.std() + eps)


def z_score(value: Tensor, groups: Tensor, ddof: int, eps: float) -> tuple[Tensor, Tensor]:
    """A component's z-score over those of the group that have it, and where it says something: where it is given (not
    NaN) and not equal throughout the group. Elsewhere z is 0. [B] each
    """
    given, z = ~value.isnan(), torch.zeros_like(value)
    z[given] = group_norm(value[given], groups[given], ddof=ddof, eps=eps)
    heard = given.clone()
    heard[given] = ~group_is_constant(value[given], groups[given])
    return z, heard
