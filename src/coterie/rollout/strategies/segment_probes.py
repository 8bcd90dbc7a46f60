"""SPO-chain's roll-out: short probes at the places where a rollout could have gone another way (arXiv:2505.23564)."""

from __future__ import annotations

from typing import Any

import torch

from coterie.errors import RecipeError
from coterie.pieces import strategy
from coterie.rollout.forks import go_on, lines_of, refuse_stop_strings, table
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream


@strategy(paper="arXiv:2505.23564", writes="parent branch", decisions="tokens")
def segment_probes(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    *,
    probes: int = 9,
    threshold: float = 0.9,
    interval: int = 5,
) -> Rollouts:
    """Independent rollouts, and `probes` completions from every cut of each: of their own budget's rest, scored alike.

    A cut lies before every decision that was taken with a probability below `threshold`; of a rollout's cuts the first
    and every `interval`-th after it are probed. rollout.group_size is the number of rollouts a prompt that learn; their
    probes come on top, as rows of the same group with `parent` the rollout and `branch` the cut (-1 for rollouts).
    """
    if probes < 1 or interval < 1:
        raise RecipeError(f"segment_probes needs probes and interval of at least 1, got {probes} and {interval}")
    refuse_stop_strings(sampling, "segment_probes")
    lines = lines_of(policy.rollout(prompts, seeds, sampling, entropy=entropy))
    own = [seed for group in seeds for seed in group]
    cuts = [
        (row, cut)
        for row, line in enumerate(lines)
        for cut in (line.logp.exp() < threshold).nonzero().flatten().tolist()[::interval]
    ]
    forks = [(lines[row].until(cut), [stream(own[row], "probe", cut, k) for k in range(probes)]) for row, cut in cuts]
    parents = [*range(len(lines)), *(row for row, _ in cuts for _ in range(probes))]
    branches = [*(-1 for _ in lines), *(cut for _, cut in cuts for _ in range(probes))]
    lines += go_on(policy, prompts, forks, sampling, entropy)
    return table(
        policy, prompts, lines, sampling,
        parent=torch.tensor(parents, device=policy.device), branch=torch.tensor(branches, device=policy.device),
    )  # fmt: skip
