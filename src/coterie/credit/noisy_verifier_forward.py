"""Forward correction of a verifier that errs: weights under which the clean gradient is the mean (arXiv:2510.00915)."""

from collections.abc import Mapping

from torch import Tensor

from coterie.columns import per_rollout
from coterie.pieces import credit


@credit(paper="arXiv:2510.00915")
def noisy_verifier_forward(
    rewards: Tensor,
    components: Mapping[str, Tensor],
    *,
    false_negative: float = 0.2,
    false_negative_from: str | None = None,
) -> Tensor:
    """false_negative where the verifier says 1, false_negative - 1 where it says 0. [B] -> [B]

    That is R - (1 - false_negative), and its mean over the verifier's errors is (1 - false_positive - false_negative)
    (R* - 1) with the clean reward R*: the rate of false positives is not needed. false_negative is P(reward 0 | right):
    a number, or the reward component that false_negative_from names (the number stays where that function gives none).
    It is the advantage as it stands, not compared with the group: groups all right are lifted a little, groups all
    wrong pushed down.
    """
    missed = per_rollout(false_negative, false_negative_from, components, rewards, "noisy_verifier_forward")
    return rewards - (1 - missed)
