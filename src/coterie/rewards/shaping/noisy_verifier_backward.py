"""Backward correction of a verifier that errs: the reward that is right on average (arXiv:2510.00915)."""

from collections.abc import Mapping

from torch import Tensor

from coterie.columns import per_rollout
from coterie.metrics import record
from coterie.pieces import shaping


@shaping(paper="arXiv:2510.00915")
def noisy_verifier_backward(
    rewards: Tensor,
    components: Mapping[str, Tensor],
    *,
    false_positive: float = 0.1,
    false_negative: float = 0.2,
    false_positive_from: str | None = None,
    false_negative_from: str | None = None,
    floor: float = 0.1,
) -> Tensor:
    """(R - false_positive) / (1 - false_positive - false_negative), unbiased for the clean 0/1 reward. [B] -> [B]

    false_positive is P(reward 1 | wrong), false_negative P(reward 0 | right): one number each, or a rate for each
    rollout from the reward component that false_positive_from or false_negative_from names (the number stays where
    that function gives none). The denominator is at least `floor`. Both rates 0 leave the reward as it is.
    """
    accepts = per_rollout(false_positive, false_positive_from, components, rewards, "noisy_verifier_backward")
    rejects = per_rollout(false_negative, false_negative_from, components, rewards, "noisy_verifier_backward")
    kept = 1 - accepts - rejects
    record("noisy_verifier/floored_share", (kept < floor).to(rewards.dtype))
    return (rewards - accepts) / kept.clamp_min(floor)
