"""SEED-GRPO: less is learned from prompts whose answers disagree (arXiv:2505.12346)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import in_shape_of
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_count, group_sum


@credit(paper="arXiv:2505.12346", min_group=2)
def semantic_entropy(
    advantages: Tensor,
    groups: Tensor,
    answers: Tensor,
    *,
    alpha: float = 0.5,
    form: Literal["linear", "exp", "focal"] = "linear",
    gamma: float = 2.0,
) -> Tensor:
    """Advantage times a factor that falls with the semantic entropy of the group's answers. [B] or [B,T] -> the same

    With p_k the share of the group's rollouts that give answer k, and K answers given, the entropy is
    -(1/K) sum_k log p_k, at most log n for n rollouts; x = alpha * entropy / log n. form: "linear" 1 - x, "exp" e^-x,
    "focal" (1 - x)^gamma. One answer in the group changes nothing; alpha = 0 never does. At alpha = 1, linear, a group
    that agrees on nothing teaches nothing.
    """
    dtype = advantages.dtype
    both = torch.stack([torch.unique(x, return_inverse=True)[1] for x in (groups, answers)])
    cluster = torch.unique(both, dim=1, return_inverse=True)[1]
    size, members = group_count(groups, dtype), group_count(cluster, dtype)
    kinds = group_sum(1 / members, groups)  # each answer's rollouts add up to one
    entropy = -group_sum((members / size).log() / members, groups) / kinds
    x = alpha * entropy / size.log().clamp_min(torch.finfo(dtype).tiny)
    x = torch.where(size > 1, x, torch.zeros_like(x))
    record("seed/semantic_entropy", entropy)
    record("seed/answers_per_group", kinds)
    factor = {"linear": 1 - x, "exp": (-x).exp(), "focal": (1 - x).clamp_min(0) ** gamma}[form]
    return advantages * in_shape_of(factor, advantages)
