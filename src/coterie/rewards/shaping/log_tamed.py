"""PaCo-GRPO's aggregation: rewards that swing more than the others are taken by their logarithm (arXiv:2512.04784)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import shaping


@shaping(paper="arXiv:2512.04784")
def log_tamed(
    rewards: Tensor,
    components: Mapping[str, Tensor],
    reward_weights: Mapping[str, float],
    *,
    above: float | Literal["mean", "median"] = "mean",
    eps: float = 1e-6,
) -> Tensor:
    """Rewards in which components of large variation count as log(1 + R), a negative R as -log(1 - R). [B] -> [B]

    Variation is the standard deviation over the size of the mean (ddof 0, + eps), over all rollouts of the update that
    have the component. Those are tamed whose variation is greater than the mean or the median of the components'
    variations, or than the number that `above` is. Components of weight 0 are left out; a single one is never tamed by
    its own mean.
    """
    used = {name: value for name, value in components.items() if reward_weights[name] != 0 and not value.isnan().all()}
    if not used:
        return rewards
    spread = torch.stack([_variation(value[~value.isnan()], eps) for value in used.values()])
    limit = spread.quantile(0.5) if above == "median" else spread.mean() if above == "mean" else above
    tamed = spread > limit
    record("paco/tamed_share", tamed)
    for (name, value), tame in zip(used.items(), tamed.tolist(), strict=True):
        if tame:
            change = value.sign() * value.abs().log1p() - value
            rewards = rewards + reward_weights[name] * change.nan_to_num(0.0).to(rewards.dtype)
    return rewards


def _variation(value: Tensor, eps: float) -> Tensor:
    return value.std(correction=0) / (value.mean().abs() + eps)
