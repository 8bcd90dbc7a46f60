"""GSPO's ratio: one a rollout, the geometric mean of its decisions' ratios (arXiv:2507.18071)."""

from torch import Tensor

from coterie.objectives.ratios.token import LOG_LIMIT
from coterie.pieces import ratio
from coterie.reductions import masked_mean


@ratio(paper="arXiv:2507.18071", shape="B")
def sequence(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    """exp of the mean log-ratio over a rollout's decisions. [B,T] -> [B], never broadcast. Gradient through logp."""
    return masked_mean(logp - logp_old, mask).clamp(-LOG_LIMIT, LOG_LIMIT).exp()
