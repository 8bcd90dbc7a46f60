"""Each side against its own: drawings of one description, descriptions of one picture (Unified-GRPO,
arXiv:2509.09666)."""

from typing import Literal

import torch
from torch import Tensor

from coterie.credit.group_norm import group_norm
from coterie.pieces import credit
from coterie.reductions import call_share


@credit(paper="arXiv:2509.09666", shape="B", min_group=2)
def side_norm(
    rewards: Tensor,
    groups: Tensor,
    episode: Tensor,
    *,
    scale: Literal["std", "batch_std", "centred_std", "none"] = "std",
    ddof: int = 1,
    eps: float = 1e-4,
) -> Tensor:
    """group_norm where a group is what answered the same: calls of one episode, or lone ones of one prompt. [B] -> [B]

    An agent that is called several times in an episode, with the same words, is compared with itself there. One that
    acts once an episode is compared with the other episodes of its prompt, as far as it acts once there too. Where all
    do, it is group_norm. scale, ddof and eps are group_norm's. A group of equal rewards or of one gets exactly 0.
    """
    lone = call_share(groups, episode) == 1
    shared = torch.stack([groups, lone.to(groups.dtype), torch.where(lone, 0, episode)], 1)
    own = torch.unique(shared, dim=0, return_inverse=True)[1]
    return group_norm(rewards, own, scale=scale, ddof=ddof, eps=eps)
