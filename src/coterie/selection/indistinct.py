"""DaGRPO's filter: rollouts that hardly differ from those of the other outcome are left out (arXiv:2512.06337)."""

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import filter
from coterie.reductions import group_extreme


@filter(paper="arXiv:2512.06337")
def indistinct(
    rewards: Tensor, correct: Tensor, groups: Tensor, anchor: Tensor | None = None, *, margin: float = 0.1
) -> Tensor:
    """0 for rollouts whose reward is less than `margin` from that of every rollout of the other outcome in their group,
    1 for others. [B] -> [B]

    Two such rollouts pull the same tokens in opposite directions. A group with one outcome stays. Anchors, where the
    strategy puts some, stay only in groups in which no rollout is right, and otherwise count for nothing. margin=0
    keeps all rollouts. Advantages are computed on what stays.
    """
    there = torch.ones_like(correct)
    if anchor is not None:
        solved = group_extreme((correct & ~anchor).to(rewards.dtype), groups, largest=True) > 0
        there = ~anchor | ~solved
        record("dagrpo/anchored_share", (anchor & there).to(rewards.dtype), anchor)
    far = torch.zeros_like(rewards)
    for other in (correct, ~correct):
        others = other & there
        low = group_extreme(rewards.masked_fill(~others, torch.inf), groups, largest=False)
        high = group_extreme(rewards.masked_fill(~others, -torch.inf), groups, largest=True)
        missing = low > high
        away = torch.where(missing, torch.full_like(low, torch.inf), torch.maximum(rewards - low, high - rewards))
        far = torch.where(other, far, away)
    near = far < margin
    record("dagrpo/indistinct_share", near.to(rewards.dtype), there)
    return (there & ~near).to(rewards.dtype)
