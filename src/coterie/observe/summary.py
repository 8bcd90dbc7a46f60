"""What a step's rollouts say: rewards, dead groups, lengths, advantages."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.columns import per_decision
from coterie.reductions import group_is_constant
from coterie.rollouts import Rollouts


@torch.no_grad()
def describe(seen: Rollouts | None, batch: Rollouts | None) -> dict[str, float]:
    """Metrics of everything rolled out (`seen`) and of what the update learned from (`batch`)."""
    out: dict[str, float] = {}
    if seen is not None:
        seen = seen.sampled()
        rewards, groups = seen["rewards"], seen["groups"]
        out["reward/mean"] = float(rewards.mean())
        out["reward/std"] = float(rewards.std(correction=0))
        for name, value in seen.columns["components"].items():  # type: ignore[union-attr]
            known = value[~value.isnan()]
            if len(known):
                out[f"reward/{name}"] = float(known.mean())
        if "correct" in seen:
            out["accuracy"] = float(seen["correct"].float().mean())
        out["groups/dead_share"] = _share_of_groups(group_is_constant(rewards, groups), groups)
        lengths = seen["lengths"].float()
        out["length/mean"], out["length/max"] = float(lengths.mean()), float(lengths.max())
        out["length/truncated_share"] = float(seen["truncated"].float().mean())
        out["tokens/decisions"] = float(lengths.sum())
        taken = seen["entropy_old"] if "entropy_old" in seen else -seen["logp_old"]
        out["entropy/mean"] = float(taken[seen["mask"]].mean())
    if batch is not None and "advantages" in batch:
        mask = batch["mask"] & (per_decision(batch["weights"], batch["mask"]) != 0)
        advantages = per_decision(batch["advantages"], batch["mask"])[mask]
        if advantages.numel():
            out["advantage/mean"] = float(advantages.mean())
            out["advantage/std"] = float(advantages.std(correction=0))
            out["advantage/abs_mean"] = float(advantages.abs().mean())
        out["groups/trained"] = float(len(torch.unique(batch["groups"][mask.any(-1)])))
    return out


def _share_of_groups(flag: Tensor, groups: Tensor) -> float:
    index, inverse = torch.unique(groups, return_inverse=True)
    per_group = torch.zeros(len(index), dtype=torch.bool, device=flag.device)
    per_group[inverse] = flag
    return float(per_group.float().mean())
