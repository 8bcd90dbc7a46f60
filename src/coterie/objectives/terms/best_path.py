"""LayerTuning-RL: the velocity of the group's best path as a target on the way (arXiv:2509.23352)."""

from torch import Tensor

from coterie.columns import finite_or_zero
from coterie.metrics import record
from coterie.pieces import term
from coterie.reductions import group_extreme


@term(paper="arXiv:2509.23352", whole_groups=True, min_group=2)
def best_path(
    best_gap: Tensor,
    rewards: Tensor,
    groups: Tensor,
    mask: Tensor,
    *,
    coef: float = 1e-4,
    above: float | None = None,
) -> Tensor:
    """coef * |v - v_best|^2 of every decision, a mean over its numbers, added to the loss. [B,T]. Gradient flows
    through best_gap, in which v_best is a number.

    v_best: velocity in the same step on the path of the group's highest reward, by the policy before the update. above:
    only groups whose best rollout in the update has more reward than this, or the best of bad ones would be imitated.
    """
    value = finite_or_zero(best_gap, mask)
    if above is not None:
        good = group_extreme(rewards, groups, largest=True) > above
        value = value * good.unsqueeze(-1)
    record("best_path/gap", value)
    return coef * value
