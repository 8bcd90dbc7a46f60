"""The reward itself as the advantage, for rewards that are relative already (BRPO, arXiv:2506.00103)."""

from torch import Tensor

from coterie.pieces import credit


@credit(paper="arXiv:2506.00103")
def raw_reward(rewards: Tensor) -> Tensor:
    """The reward, with no mean taken off and no scale. [B] -> [B]

    It knows nothing of groups: equal rewards other than 0 push all of a group the same way.
    """
    return rewards.clone()
