"""GDRO: a group's order by implicit rewards, learned from its order by rewards, softly (CVPR 2026)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero
from coterie.metrics import record
from coterie.objectives.pairs import Length, live_decisions, log_ratios
from coterie.pieces import loss
from coterie.reductions import group_position, group_sum, masked_mean


@loss(whole_groups=True, min_group=2)
def group_ranking(
    logp: Tensor,
    logp_ref: Tensor,
    rewards: Tensor,
    groups: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    beta: float = 12.0,
    temperature: float = 0.05,
    anchor: float = 0.5,
    length: Length = "mean",
) -> Tensor:
    """A group's sum over i < k of logsumexp_{m >= i} s_m - sum_{j >= i} q_i(j) s_j, with its rollouts in order of
    falling reward, to be minimised; the same for each of the group. [B]

    s = beta * log pi/ref of a rollout, over its decisions the mean or the sum by `length`. q_i: softmax of
    reward / temperature over rollouts from i on; 0 is the order itself (Plackett-Luce). anchor: times -logp of the best
    rollout (of renoised samples, its squared error) is added. Rewards are detached. Where they are equal q is even and
    pulls the s together. Rollouts and decisions without weight are not there; one alone has the anchor's part only.
    """
    live = live_decisions(mask, weights)
    there = live.any(-1)
    s = beta * log_ratios(logp, logp_ref, live, length)
    place = group_position(torch.where(there, -rewards, torch.inf), groups)
    behind = (groups.unsqueeze(1) == groups) & (place.unsqueeze(1) <= place) & there & there.unsqueeze(1)  # [i, m]
    own = torch.where(there.unsqueeze(1), behind, torch.eye(len(s), dtype=torch.bool, device=s.device))
    total = torch.where(own, s, -torch.inf).logsumexp(-1)
    if temperature > 0:
        target = torch.where(own, rewards / temperature, -torch.inf).softmax(-1)
        wanted = (target * torch.where(own, s, 0.0)).sum(-1)
    else:
        wanted = s
    last = behind.sum(-1) <= 1
    stage = torch.where(there & ~last, total - wanted, 0.0)
    best = there & (place == 0)
    nll = torch.where(best, -masked_mean(finite_or_zero(logp, live), live), 0.0)
    record("ranking/implicit", s.abs(), there)
    record("ranking/kept_order", (wanted > torch.where(own, s, 0.0).sum(-1) / own.sum(-1)), there & ~last)
    return group_sum(stage + anchor * nll, groups)
