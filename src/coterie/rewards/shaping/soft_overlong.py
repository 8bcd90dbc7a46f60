"""DAPO's soft overlong punishment (arXiv:2503.14476)."""

from torch import Tensor

from coterie.pieces import shaping


@shaping(paper="arXiv:2503.14476")
def soft_overlong(
    rewards: Tensor,
    lengths: Tensor,
    budget: int,
    *,
    max_length: int | None = None,
    cache: int | None = None,
    factor: float = 1.0,
) -> Tensor:
    """Reward minus a penalty that grows from 0 to `factor` over the last `cache` tokens before `max_length`. [B] -> [B]

    0 up to max_length - cache, then linear, and -factor beyond max_length. max_length defaults to the completion
    budget of the run, cache to a fifth of it (the paper: 20480 and 4096).
    """
    longest = budget if max_length is None else max_length
    window = max(longest // 5, 1) if cache is None else cache
    over = (lengths.to(rewards.dtype) - (longest - window)) / window
    return rewards - factor * over.clamp(0.0, 1.0)
