"""Truncated importance sampling: what the sampler gave too little gets more weight, up to a bound (TIS).

Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"; truncation after
Ionides 2008.
"""

from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record, record_range
from coterie.mismatch import Level, effective_share, importance
from coterie.pieces import selection


@selection()
def truncated_importance(
    logp_train: Tensor, logp_old: Tensor, mask: Tensor, weights: Tensor, *, level: Level = "token", cap: float = 2.0
) -> Tensor:
    """The weight times min(trainer's probability / sampler's, cap). [B] or [B,T] -> [B,T]

    level: the ratio of the decision (token), of the whole rollout (sequence, the product of its decisions' ratios), or
    the geometric mean of these (geometric). Only large ratios are cut; small ones stay. Detached. The update's own
    ratio is then against the trainer's log-prob. Equal log-probs change nothing, if cap is 1 or more.
    """
    ratio = importance(logp_train, logp_old, mask, level)
    before = finite_or_zero(per_decision(weights, mask), mask)
    live, kept = before != 0, ratio.clamp(max=cap)
    record("tis/truncated_share", (ratio > cap).to(ratio.dtype), live)
    record_range("tis/ratio", ratio, live)
    if bool(live.any()):
        record("tis/effective_share", effective_share(kept, live))
    return before * kept
