"""LightningRL's filter: prompts that somebody answers, and not all at the same speed (arXiv:2603.13319)."""

from collections.abc import Mapping

from torch import Tensor

from coterie.columns import component
from coterie.metrics import record
from coterie.pieces import filter
from coterie.reductions import group_extreme


@filter(paper="arXiv:2603.13319")
def speed_signal(
    groups: Tensor,
    correct: Tensor,
    components: Mapping[str, Tensor],
    *,
    speed: str = "speed",
    spread: float = 0.01,
    max_rounds: int = 4,
) -> Tensor:
    """0 for groups all wrong, and for groups whose `speed` differs by less than `spread`; 1 for the others. [B] -> [B]

    speed: the reward component that measures it, tokens a forward pass in the paper; a rollout without one (NaN) does
    not count, and a group without any is dropped. The loop draws new prompts until the batch is full, at most
    max_rounds draws an update.
    """
    value = component(components, speed, "speed_signal")
    given = ~value.isnan()
    low = group_extreme(value.masked_fill(~given, float("inf")), groups, largest=False)
    high = group_extreme(value.masked_fill(~given, float("-inf")), groups, largest=True)
    solved = group_extreme(correct.to(value.dtype), groups, largest=True) > 0
    record("speed_signal/flat_share", (high - low < spread).to(value.dtype))
    return (solved & (high - low >= spread)).to(value.dtype)
