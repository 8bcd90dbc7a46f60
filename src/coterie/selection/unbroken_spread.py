"""UI-S1's filter: groups whose returns from the first turn hardly differ are left out (arXiv:2509.11543)."""

from torch import Tensor

from coterie.pieces import filter
from coterie.reductions import group_std, turn_exists, unbroken_returns


@filter(paper="arXiv:2509.11543")
def unbroken_spread(
    step_rewards: Tensor,
    groups: Tensor,
    turn: Tensor,
    mask: Tensor,
    *,
    above: float = 0.3,
    gamma: float = 0.5,
    exact: float = 0.9,
    max_rounds: int = 4,
) -> Tensor:
    """1 for rollouts of groups where the population standard deviation of the return from the first turn is above
    `above`, else 0. [B,U] -> [B]

    gamma and exact say what a return is, as in unbroken_turn_norm. The loop draws new prompts until the batch is full,
    at most max_rounds draws an update.
    """
    returns = unbroken_returns(step_rewards, turn_exists(turn, mask, step_rewards.shape[1]), gamma, exact)
    return (group_std(returns[:, 0], groups, ddof=0) > above).to(step_rewards.dtype)
