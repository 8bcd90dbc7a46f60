"""FlowSE-GRPO's sum: every metric in units of its own spread over the batch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import shaping


@shaping()
def unit_spread(
    rewards: Tensor, components: Mapping[str, Tensor], reward_weights: Mapping[str, float], *, eps: float = 1e-6
) -> Tensor:
    """Sum over components of weight * R_k / std R_k, over all rollouts of the update that have the component (ddof 0).
    [B] -> [B]

    Nothing is centred. A component that is the same everywhere (spread at most eps) is left out: it has no unit. What
    shaping before this did to the reward is kept.
    """
    given = sum_of(components, reward_weights, rewards)
    new = torch.zeros_like(rewards)
    for name, value in components.items():
        if reward_weights[name] == 0 or bool(value.isnan().all()):
            continue
        known = value[~value.isnan()]
        spread = known.std(correction=0)
        record(f"spread/{name}", float(spread))
        if float(spread) > eps:
            new = new + reward_weights[name] * (value / spread).nan_to_num(0.0).to(rewards.dtype)
    return rewards - given + new


def sum_of(components: Mapping[str, Tensor], weights: Mapping[str, float], like: Tensor) -> Tensor:
    """The weighted sum of components, leaving out what is not there. [B]"""
    out = torch.zeros_like(like)
    for name, value in components.items():
        out = out + weights[name] * value.nan_to_num(0.0).to(like.dtype)
    return out
