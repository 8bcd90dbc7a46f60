"""Sol-RL's roll-out: many cheap candidates; the best and the worst are drawn again in full (arXiv:2604.06916)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.pieces import strategy
from coterie.rollout.strategies.renoised import drawn
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream


@strategy(paper="arXiv:2604.06916", decisions="denoising steps", min_group=2)
def explored(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    grade: Callable[[list[Any], list[Any]], Tensor],
    *,
    candidates: int = 96,
    steps: int | None = None,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    draws: int = 4,
) -> Rollouts:
    """Per prompt draw `candidates` samples by the ODE in few `steps` and low precision, keep the starting noise of the
    best half group and of the worst, and draw these again as the run says: its rollouts. Their decisions are those of
    `renoised`, `draws` of each.

    The cheap reward only chooses; what is learned from is graded anew. steps: default 3/5 of denoise.steps. dtype:
    torch.autocast's; "float32" takes the weights as they are.
    """
    spec, size = sampling.denoising, len(seeds[0])
    assert spec is not None
    if candidates < size:
        raise RecipeError(
            f"{candidates} candidates do not hold a group of {size}",
            where="rollout.strategy=explored",
            hint=f"rollout.strategy.candidates={4 * size}",
        )
    few = max(1, 3 * spec.steps // 5) if steps is None else steps
    cheap = replace(spec, steps=few, stochastic=(), shared_noise=False)
    own = [[stream(0, "candidate", group[0], k) for k in range(candidates)] for group in seeds]
    start = policy.noise(own, cheap)[:, 0]
    owner = torch.arange(len(prompts)).repeat_interleave(candidates)
    with torch.autocast(policy.device.type, getattr(torch, dtype), enabled=dtype != "float32"):
        tried = policy.denoise(start, prompts, owner, cheap, noise=start.new_zeros(len(start), few))
    rows = [prompts[g].row for g in owner.tolist()]
    rewards = grade(rows, policy.samples(tried.states[:, -1])).nan_to_num(nan=-torch.inf)
    kept = contrast(rewards.view(len(prompts), candidates), size)
    record("explore/spread", float((rewards[kept].view(-1, size)[:, -1] - rewards[kept].view(-1, size)[:, 0]).mean()))
    full, groups = replace(spec, stochastic=()), torch.arange(len(prompts)).repeat_interleave(size)
    again = start[kept.to(start.device)]
    path = policy.denoise(again, prompts, groups, full, noise=again.new_zeros(len(again), spec.steps))
    noise, at = drawn(policy, seeds, draws, spec)
    return policy.renoised(prompts, groups, path.states[:, -1], noise, at, sampling)


def contrast(rewards: Tensor, size: int) -> Tensor:
    """Flat indices of each row's lowest size // 2 and highest size - size // 2, ascending in reward. [P,N] -> [P*size]

    Among equals the first come first.
    """
    order = rewards.argsort(dim=-1, stable=True)
    low = size // 2
    chosen = torch.cat([order[:, :low], order[:, rewards.shape[1] - (size - low) :]], 1)
    return (chosen + torch.arange(len(rewards)).unsqueeze(-1) * rewards.shape[1]).flatten()
