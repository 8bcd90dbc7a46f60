"""Reverse KL to a teacher on the student's own samples, as a term of the loss (KDRL, arXiv:2506.02208)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.errors import RewardError
from coterie.kl import kl_estimate
from coterie.metrics import record
from coterie.pieces import term
from coterie.reductions import group_extreme


@term(paper="arXiv:2506.02208", whole_groups=True)
def distillation(
    logp: Tensor,
    logp_teacher: Tensor,
    groups: Tensor,
    mask: Tensor,
    correct: Tensor | None = None,
    *,
    coef: float = 2e-3,
    estimator: Literal["k1", "k2", "k3"] = "k2",
    on: Literal["all", "wrong", "failed_groups"] = "all",
) -> Tensor:
    """coef * estimate of KL(policy || teacher) of every decision, added to the loss. [B,T]. Gradient through logp.

    k2, half the squared difference of log-probs, has the reverse KL's gradient on policy: it lowers the advantage of a
    decision by coef (logp - logp_teacher). k3 leans towards the forward KL, k1 has no gradient in expectation. on:
    "all" rollouts, "wrong" ones by the verifier, or those of "failed_groups", in which none is right; the others get 0
    and still count in the mean. The teacher is detached; 0 where it says nothing (NaN) or thinks it impossible.
    """
    taught = mask & logp_teacher.isfinite()
    if on != "all":
        if correct is None:
            raise RewardError(
                f"distillation with on={on} reads the verifier's verdict, and the task has no verifier",
                hint="objective.terms.distillation.on=all",
            )
        wrong = ~correct
        if on == "failed_groups":
            wrong = group_extreme(correct.to(logp.dtype), groups, largest=True) == 0
        taught = taught & per_decision(wrong, mask)
    gap = finite_or_zero(logp - logp_teacher.detach(), taught)
    record("teacher/gap", gap.detach(), taught)
    record("teacher/share", taught)
    return coef * torch.where(taught, kl_estimate(gap, estimator), gap.new_zeros(()))
