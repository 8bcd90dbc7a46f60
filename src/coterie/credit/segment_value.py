"""SPO-chain's advantage: how much each segment changed the chance of success, by probes (arXiv:2505.23564)."""

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_extreme, group_mean


@credit(paper="arXiv:2505.23564", shape="B T")
def segment_value(rewards: Tensor, parent: Tensor, branch: Tensor, mask: Tensor) -> Tensor:
    """V at the end of each decision's segment minus V at its beginning. [B] -> [B,T]

    V at a cut is the mean reward of the rollouts forked there, V at the end the rollout's own reward. Decisions before
    the first cut get 0, and so does a rollout nothing was forked from (probes are such). No normalisation. Values that
    are equal because all rewards behind them are give exactly 0.
    """
    rows, width = mask.shape
    forked = (branch >= 0) & (branch < width)
    cut = parent * width + branch.clamp(0, width - 1)
    cut = torch.where(forked, cut, torch.arange(rows, device=cut.device) + rows * width)  # others are of no cut
    value = group_mean(rewards, cut)
    value = value.clamp(group_extreme(rewards, cut, False), group_extreme(rewards, cut, True))
    at = rewards.new_full((rows * width,), torch.nan).scatter(0, cut[forked], value[forked]).view(rows, width)
    here = torch.arange(width, device=mask.device)
    known = ~at.isnan()
    left = torch.where(known, here, -1).cummax(1).values
    after = torch.where(known, here, width).flip(1).cummin(1).values.flip(1)
    right = torch.nn.functional.pad(after[:, 1:], (0, 1), value=width)
    ends = torch.cat([at, rewards.unsqueeze(-1)], 1)
    gain = ends.gather(1, right) - ends.gather(1, left.clamp_min(0))
    record("segments/count", known.sum(1).to(rewards.dtype), ~forked)
    return torch.where(mask & (left >= 0), gain, torch.zeros_like(gain))
