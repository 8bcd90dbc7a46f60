"""Group DPO: one preference a group, its rollouts weighed by their advantages (GDPO-SR, CVPR 2026)."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.objectives.pairs import Length, live_decisions
from coterie.pieces import loss
from coterie.reductions import group_sum, masked_mean, masked_sum


@loss(whole_groups=True, min_group=2)
def group_dpo(
    logp: Tensor,
    logp_ref: Tensor,
    advantages: Tensor,
    groups: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.1,
    length: Length = "mean",
) -> Tensor:
    """-log sigmoid(beta sum_i A_i rho_i) of each rollout's group, one for the whole group, to be minimised. [B]

    rho_i: log pi/ref of rollout i, by `length` the sum or the mean over its decisions. The advantage is detached. It
    saturates: where the sum is large the group has no gradient left. Without an advantage it is log 2, without a
    gradient. Rollouts and decisions without weight are not there.
    """
    live = live_decisions(mask, weights)
    d = finite_or_zero(logp - logp_ref, live) * finite_or_zero(per_decision(advantages, mask), live)
    inside = beta * group_sum(masked_sum(d, live) if length == "sum" else masked_mean(d, live), groups)
    record("preference/margin", inside, live.any(-1))
    record("preference/accuracy", inside > 0, live.any(-1))
    return -logsigmoid(inside)
