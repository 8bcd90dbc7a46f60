"""SRPO: right rollouts learn by GRPO, wrong ones from the policy that was shown a right one (arXiv:2604.02288)."""

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.objectives.ratios.token import token
from coterie.objectives.trust_regions.ppo_clip import ppo_clip
from coterie.pieces import loss
from coterie.reductions import group_extreme, group_sum

TEMPLATE = "\nHere is a correct solution:\n{solution}\nNow solve it yourself.\n"


@loss(paper="arXiv:2604.02288", whole_groups=True)
def sample_routed(
    logp: Tensor,
    logp_old: Tensor,
    advantages: Tensor,
    kl_shown: Tensor,
    entropy_shown: Tensor,
    correct: Tensor,
    groups: Tensor,
    mask: Tensor,
    *,
    beta: float = 1.0,
    eps_low: float = 0.2,
    eps_high: float = 0.28,
    template: str = TEMPLATE,
) -> Tensor:
    """w KL(policy || policy shown a right rollout) on wrong rollouts that have one beside them, the clipped surrogate's
    -min(r A, clip(r, 1-eps_low, 1+eps_high) A) on all others, to be minimised. [B,T]

    w is exp(-beta H), H the entropy of the one that was shown, over its mean among the group's decisions that learn so:
    1 on average, less where it is unsure itself; beta=0 weighs nothing. Gradient through logp and the KL's first
    distribution; w and the shown one are detached. template: what is put behind the prompt, {solution} being the right
    rollout's text. Where kl_shown is NaN there is nobody to learn from, and it is the surrogate.
    """
    routed = mask & ~correct.unsqueeze(-1) & kl_shown.isfinite() & entropy_shown.isfinite()
    doubt = torch.where(routed, entropy_shown.detach(), torch.inf)
    least = group_extreme(doubt.amin(-1), groups, largest=False).unsqueeze(-1)
    raw = torch.where(routed, (-beta * (doubt - least)).exp(), torch.zeros_like(doubt))
    count = group_sum(routed.sum(-1).to(raw.dtype), groups)
    total = group_sum(raw.sum(-1), groups)
    mean = torch.where(count > 0, total / count.clamp_min(1.0), torch.ones_like(total)).unsqueeze(-1)
    weight = raw / mean
    record("routed/share", routed)
    record("routed/kl", finite_or_zero(kl_shown.detach(), routed), routed)
    others = mask & ~routed
    a = finite_or_zero(per_decision(advantages, mask), others)
    surrogate = ppo_clip(token(logp, logp_old, others), a, eps_low=eps_low, eps_high=eps_high)
    return weight * finite_or_zero(kl_shown, routed) - surrogate
