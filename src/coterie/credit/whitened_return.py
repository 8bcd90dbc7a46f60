"""REINFORCE++'s advantage: returns to go, whitened over every decision of the batch (arXiv:2501.03262)."""

import torch
from torch import Tensor

from coterie.pieces import credit
from coterie.reductions import group_is_constant, group_mean


@credit(paper="arXiv:2501.03262", shape="B T")
def whitened_return(
    token_rewards: Tensor,
    mask: Tensor,
    groups: Tensor,
    rewards: Tensor,
    *,
    gamma: float = 1.0,
    group_baseline: bool = False,
    ddof: int = 1,
    eps: float = 1e-8,
) -> Tensor:
    """Discounted return to go of each decision, minus the batch mean, over the batch std. [B,T] -> [B,T]

    Statistics are over all unmasked decisions of the update, so long rollouts weigh more; std = sqrt(var + eps).
    The running return passes through masked positions undiscounted. group_baseline: REINFORCE++-baseline, in which
    every decision of a rollout gets its reward minus the group's mean before whitening (dense token rewards are not
    read; put the KL in the loss). Equal returns everywhere give exactly 0.
    """
    if group_baseline:
        centred = rewards - group_mean(rewards, groups)
        centred = torch.where(group_is_constant(rewards, groups), torch.zeros_like(centred), centred)
        returns = centred.unsqueeze(-1).expand(mask.shape).to(token_rewards.dtype)
    else:
        returns = _returns_to_go(token_rewards, mask, gamma)
    valid = returns[mask]
    if valid.numel() <= ddof or bool(valid.max() == valid.min()):
        return torch.zeros_like(token_rewards)
    whitened = (returns - valid.mean()) * torch.rsqrt(valid.var(correction=ddof) + eps)
    return torch.where(mask, whitened, torch.zeros_like(whitened))


def _returns_to_go(token_rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    step_rewards = torch.where(mask, token_rewards, torch.zeros_like(token_rewards))
    if gamma == 1.0:
        return step_rewards.flip(-1).cumsum(-1).flip(-1)
    returns, running = torch.zeros_like(step_rewards), torch.zeros_like(step_rewards[:, 0])
    for t in reversed(range(step_rewards.shape[1])):
        running = torch.where(mask[:, t], step_rewards[:, t] + gamma * running, running)
        returns[:, t] = running
    return returns
