"""Rank-GRPO's ratio: one an item of the list, the geometric mean of its decisions' ratios (arXiv:2510.20150)."""

from torch import Tensor

from coterie.objectives.ratios.token import LOG_LIMIT
from coterie.pieces import ratio
from coterie.reductions import turn_mean


@ratio(paper="arXiv:2510.20150")
def turn(logp: Tensor, logp_old: Tensor, turn: Tensor, mask: Tensor) -> Tensor:
    """exp of the mean log-ratio over the decisions of each turn or step; 1 where masked. [B,T] -> [B,T]

    Every decision of a turn has its turn's ratio, with the gradient of all of them. Decisions in no turn are taken
    together. One turn a rollout is GSPO's ratio, one decision a turn PPO's.
    """
    log_ratio = (logp - logp_old).masked_fill(~mask, 0.0)
    return turn_mean(log_ratio, turn, mask).clamp(-LOG_LIMIT, LOG_LIMIT).exp()
