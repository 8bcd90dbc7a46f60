"""BRPO's filter: groups that nearly all win or nearly all lose against their reference (arXiv:2506.00103)."""

from torch import Tensor

from coterie.metrics import record
from coterie.pieces import filter
from coterie.reductions import group_mean


@filter(paper="arXiv:2506.00103")
def lopsided(rewards: Tensor, groups: Tensor, *, most: float = 0.6, max_rounds: int = 4) -> Tensor:
    """0 for rollouts of a group whose mean reward is further from 0 than `most`, 1 for others. [B] -> [B]

    Rewards are signs: a mean far from 0 says that the reference was an outlier, and would push the whole group one
    way. The loop draws new prompts until the batch is full, at most max_rounds draws an update. most=1 keeps all.
    """
    skew = group_mean(rewards, groups).abs()
    record("brpo/skew", skew)
    return (skew <= most).to(rewards.dtype)
