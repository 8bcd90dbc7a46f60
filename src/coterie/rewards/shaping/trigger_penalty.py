"""AdaCoT's reward: thinking where it is not needed costs, and so does answering without where it is (2505.11896)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.columns import component
from coterie.metrics import record
from coterie.pieces import shaping


@shaping(paper="arXiv:2505.11896")
def trigger_penalty(
    rewards: Tensor,
    components: Mapping[str, Tensor],
    *,
    used: str = "used",
    needed: str = "needed",
    well_formed: str | None = None,
    miss: float = 0.3,
    over: float = 0.1,
    malformed: float = 1.0,
) -> Tensor:
    """Rewards less `miss` where thought was needed and not used, less `over` where used and not needed. [B] -> [B]

    used, needed: the reward components that say so, above 1/2 being yes; one that is not given (NaN) costs nothing.
    well_formed: a component that, where it is at most 1/2, costs `malformed`; null checks nothing.
    """
    given = [component(components, name, "trigger_penalty") for name in (used, needed)]
    known = ~given[0].isnan() & ~given[1].isnan()
    thought, wanted = (x > 0.5 for x in given)
    missed, idle = known & wanted & ~thought, known & thought & ~wanted
    record("trigger/used_share", thought.to(rewards.dtype), known)
    record("trigger/missed_share", missed.to(rewards.dtype), known)
    record("trigger/over_share", idle.to(rewards.dtype), known)
    out = rewards - miss * missed.to(rewards.dtype) - over * idle.to(rewards.dtype)
    if well_formed is None:
        return out
    bad = component(components, well_formed, "trigger_penalty") <= 0.5  # false for NaN
    return torch.where(bad, out - malformed, out)
