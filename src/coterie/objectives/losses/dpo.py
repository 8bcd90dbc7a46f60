"""DPO: the best of a group against the worst, by their log-ratios to the reference (arXiv:2305.18290)."""

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.objectives.pairs import Length, Link, contrast, link_loss, live_decisions, log_ratios, mean_over, sides
from coterie.pieces import loss


@loss(paper="arXiv:2305.18290", whole_groups=True, min_group=2)
def dpo(
    logp: Tensor,
    logp_ref: Tensor,
    rewards: Tensor,
    groups: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.1,
    link: Link = "sigmoid",
    smoothing: float = 0.0,
    length: Length = "sum",
    spread: float = 0.0,
) -> Tensor:
    """The loss of each rollout's group, a function of how much more likely its best became than its worst. [B]

    h = mean rho of the best - mean rho of the worst, rho = log pi/ref of a rollout, by `length` the sum or the mean
    over its decisions. The best have the group's largest reward, the worst its smallest; without ties that is a pair,
    and DPO. link: "sigmoid" -log sigmoid(beta h), "ipo" (h - 1/(2 beta))^2, "hinge" max(0, 1 - beta h). smoothing: the
    chance that the preference is wrong (conservative DPO). spread: times the variance (ddof 0) of rho among the best,
    added. Nothing but the reference is detached. 0 for a group whose rewards are all equal. Average it over groups:
    objective.aggregation.scope=group. Rollouts and decisions without weight are not there.
    """
    live = live_decisions(mask, weights)
    two = sides(rewards, live.any(-1), groups)
    rho = log_ratios(logp, logp_ref, live, length)
    h = contrast(rho, two, groups)
    value = link_loss(h, beta, link, smoothing)
    if spread:
        far = (rho - mean_over(rho, two.best, groups)) ** 2
        value = value + spread * mean_over(far, two.best, groups)
    record("preference/margin", beta * h, two.both)
    record("preference/accuracy", h > 0, two.both)
    record("preference/pairs_share", two.both, live.any(-1))
    record("preference/best_reward", beta * rho, two.best)
    record("preference/worst_reward", beta * rho, two.worst)
    return torch.where(two.both, value, torch.zeros_like(value))
