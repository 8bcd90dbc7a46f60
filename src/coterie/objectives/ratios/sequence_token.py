"""GSPO-token's ratio: the sequence ratio's value with each decision's own gradient (arXiv:2507.18071)."""

from torch import Tensor

from coterie.objectives.ratios.token import LOG_LIMIT
from coterie.pieces import ratio
from coterie.reductions import masked_mean


@ratio(paper="arXiv:2507.18071")
def sequence_token(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    """sg(s_i) * exp(logp - sg(logp)), which admits an advantage a decision. [B,T] -> [B,T]

    s_i is detached. Under a sequence mean and with one advantage a rollout, value and gradient are GSPO's.
    """
    level = masked_mean(logp.detach() - logp_old, mask).clamp(-LOG_LIMIT, LOG_LIMIT).exp()
    own = (logp - logp.detach()).masked_fill(~mask, 0.0).exp()
    return level.unsqueeze(-1) * own
