"""Masked importance sampling: decisions or rollouts on which sampler and trainer disagree too much get no gradient.

By decision it is IcePop (arXiv:2510.18855), by rollout sequence-level MIS (Liu et al. 2025, "When speed kills
stability").
"""

from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record, record_range
from coterie.mismatch import Level, effective_share, importance
from coterie.pieces import selection


@selection(paper="arXiv:2510.18855")
def masked_importance(
    logp_train: Tensor,
    logp_old: Tensor,
    mask: Tensor,
    weights: Tensor,
    *,
    level: Level = "token",
    low: float = 0.5,
    high: float = 5.0,
    reweight: bool = True,
) -> Tensor:
    """The weight times trainer's probability / sampler's where that is in [low, high], else 0. [B] or [B,T] -> [B,T]

    level: the ratio of the decision (token), of the whole rollout (sequence), or the geometric mean of its decisions'
    (geometric, whose bounds lie close to 1). reweight=false only masks: what stays keeps its weight, and may get one
    from truncated_importance. Detached. The update's own ratio is then against the trainer's log-prob.
    """
    ratio = importance(logp_train, logp_old, mask, level)
    before = finite_or_zero(per_decision(weights, mask), mask)
    live, inside = before != 0, (ratio >= low) & (ratio <= high)
    out = finite_or_zero(before * ratio if reweight else before, inside)
    record("mis/masked_share", (~inside).to(ratio.dtype), live)
    record_range("mis/ratio", ratio, live)
    if bool(live.any()):
        record("mis/effective_share", effective_share(out / before.where(live, before.new_ones(())), live))
    return out
