"""A-GRAE: easy prompts count more early, hard ones late, and success less while it is rare (arXiv:2602.05548)."""

import torch
from torch import Tensor

from coterie.columns import in_shape_of
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_count, group_mean


@credit(paper="arXiv:2602.05548")
def a_grae(advantages: Tensor, rewards: Tensor, groups: Tensor, *, alpha: float = 1.0, eps: float = 1e-6) -> Tensor:
    """Advantages weighted by the difficulty of the prompt and by how far the batch has come. [B] or [B,T] -> the same

    The weight is [(1-P) / (1-sqrt(p)) + P / sqrt(p)] / 2, eps beside each denominator: p is the group's mean reward, P
    the mean of p over groups, both in [0, 1] (rewards outside count as the nearer bound). Positive advantages are also
    multiplied by min(1, P/alpha). Inside the weight p is kept in [1/n, 1-1/n], where it is for 0/1 rewards that differ,
    so that other rewards or baselines cannot make it explode. Advantages of 0 stay 0.
    """
    share = 1 / group_count(groups, rewards.dtype)
    p = group_mean(rewards.clamp(0.0, 1.0), groups)
    mastery = (p * share).sum() / share.sum()
    root = torch.minimum(torch.maximum(p, share), 1 - share).sqrt()
    weight = 0.5 * ((1 - mastery) / (1 - root + eps) + mastery / (root + eps))
    praise = (mastery / alpha).clamp(max=1.0)
    record("a_grae/mastery", mastery)
    record("a_grae/weight", weight)
    weighted = advantages * in_shape_of(weight, advantages)
    return torch.where(advantages > 0, weighted * praise, weighted)
