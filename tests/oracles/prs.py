"""Progressive reward shaping (arXiv:2512.07478)."""

from __future__ import annotations

from collections.abc import Sequence


def staged(stages: Sequence[float], quality: Sequence[float], parsed: float = 0.1, formed: float = 0.2) -> list[float]:
    table = {0: lambda q: 0.0, 1: lambda q: parsed, 2: lambda q: formed + (1 - formed) * q}
    return [table[int(s)](float(q)) if s == s else float(q) for s, q in zip(stages, quality, strict=True)]
