"""Log-likelihood of the rollouts that were right, as a term of the loss (LightningRL, arXiv:2603.13319)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.errors import RewardError
from coterie.metrics import record
from coterie.pieces import term


@term(paper="arXiv:2603.13319")
def positive_nll(
    logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    correct: Tensor | None = None,
    *,
    coef: float = 0.1,
    on: Literal["correct", "advantages"] = "correct",
    above: float = 0.0,
) -> Tensor:
    """-coef * logp of the decisions of good rollouts, 0 elsewhere, added to the loss. [B,T]. Gradient through logp.

    on: "correct" takes the rollouts that the verifier accepts, "advantages" the decisions whose advantage is greater
    than `above`. It is averaged as the rest of the loss, over all decisions with weight and not over the good ones
    alone, so it weighs less while little is right.
    """
    if on == "correct" and correct is None:
        raise RewardError(
            "positive_nll reads the verifier's verdict, and the task has no verifier",
            hint="objective.terms.positive_nll.on=advantages",
        )
    good = per_decision(correct if on == "correct" and correct is not None else advantages > above, mask) & mask
    nll = -finite_or_zero(logp, good)
    record("nll/good", nll, good)
    record("nll/good_share", good)
    return coef * torch.where(good, nll, torch.zeros_like(nll))
