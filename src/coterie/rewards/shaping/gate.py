"""Rewards that count only where another one was earned: P-GRPO (arXiv:2508.05170), G-RA (arXiv:2508.10548)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.columns import component
from coterie.errors import RewardError
from coterie.metrics import record
from coterie.pieces import shaping


@shaping(paper="arXiv:2508.05170")
def gate(
    rewards: Tensor,
    components: Mapping[str, Tensor],
    reward_weights: Mapping[str, float],
    correct: Tensor | None = None,
    *,
    gated: tuple[str, ...],
    by: str | None = None,
    at: float = 1.0,
) -> Tensor:
    """Rewards without the components in `gated` where the gate is shut. [B] -> [B]

    The gate is open where the component that `by` names is at least `at`, and by default where the verifier accepts;
    it is shut where that component is not given (NaN). What the gated components add is their weight times their
    value: with weight 0 there is nothing to shut out.
    """
    if by is not None:
        opened = component(components, by, "gate") >= at
    elif correct is not None:
        opened = correct
    else:
        raise RewardError(
            "gate reads the verifier's verdict, and the task has no verifier",
            hint="rewards.shaping.gate.by=NAME, a reward component",
        )
    record("gate/open_share", opened.to(rewards.dtype))
    for name in gated:
        added = reward_weights.get(name, 0.0) * component(components, name, "gate").nan_to_num(0.0)
        rewards = torch.where(opened, rewards, rewards - added.to(rewards.dtype))
    return rewards
