"""Progressive reward shaping: answers count once the calls before them are in order (arXiv:2512.07478)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.columns import component
from coterie.metrics import record
from coterie.pieces import shaping


@shaping(paper="arXiv:2512.07478")
def staged(
    rewards: Tensor, components: Mapping[str, Tensor], *, stage: str = "stage", parsed: float = 0.1, formed: float = 0.2
) -> Tensor:
    """0 below stage 1, `parsed` below stage 2, from there formed + (1 - formed) R. [B] -> [B]

    stage: the reward component that says how far a rollout came; 1 is calls that parse, 2 calls that are well formed
    too. R in [0, 1] is the quality of the answer. Where the stage is not given (NaN) the reward stays as it is.
    """
    reached = component(components, stage, "staged")
    record("prs/parsed_share", (reached >= 1).to(rewards.dtype), ~reached.isnan())
    record("prs/formed_share", (reached >= 2).to(rewards.dtype), ~reached.isnan())
    early = torch.where(reached >= 1, torch.full_like(rewards, parsed), torch.zeros_like(rewards))
    out = torch.where(reached >= 2, formed + (1 - formed) * rewards, early)
    return torch.where(reached.isnan(), rewards, out)
