"""PPO's clipped surrogate by cases (arXiv:1707.06347), clip-higher (2503.14476), dual clip (1912.09729)."""

from __future__ import annotations


def ppo_clip(
    r: float, a: float, eps_low: float = 0.2, eps_high: float = 0.2, dual: float | None = None
) -> tuple[float, float]:
    """The surrogate to maximise and its derivative by the ratio."""
    if a >= 0:
        return (r * a, a) if r <= 1 + eps_high else ((1 + eps_high) * a, 0.0)
    if r < 1 - eps_low:
        return (1 - eps_low) * a, 0.0
    if dual is not None and r > dual:
        return dual * a, 0.0
    return r * a, a
