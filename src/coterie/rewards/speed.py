"""How fast a rollout was decoded, as a reward: for policies that take several decisions in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PASSES = "forward_passes"
"""Name by which reward functions get the number of forward passes of each rollout, where the policy counts them."""


def speed(
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    forward_passes: Sequence[int] | None = None,
    **columns: Any,
) -> list[float]:
    """Tokens a forward pass; 1 where every token has a pass of its own."""
    passes = [len(ids) for ids in completion_ids] if forward_passes is None else forward_passes
    return [len(ids) / max(n, 1) for ids, n in zip(completion_ids, passes, strict=True)]
