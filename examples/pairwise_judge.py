"""Pairwise judges of one's own, in one file. No model is asked: they only show what a judge gets and gives.

    coterie train --task sort --model '{init: {layers: 2}}' --method pref-grpo \
        rewards.pairwise.judge=examples/pairwise_judge.py:closer steps=20

`--method arena-rl` holds a tournament of the same judge, `--method brpo` compares with a rollout drawn by chance.
"""

from __future__ import annotations

from typing import Any


def closer(prompts: list[str], first: list[str], second: list[str], answer: list[str], **columns: Any) -> list[Any]:
    """Two scores a pair, from 0 to 10: the share of characters that stand where the answer has them."""

    def score(text: str, want: str) -> float:
        return 10.0 * sum(a == b for a, b in zip(text, want, strict=False)) / max(len(text), len(want), 1)

    return [(score(a, want), score(b, want)) for a, b, want in zip(first, second, answer, strict=True)]


def shorter(prompts: list[str], first: list[str], second: list[str], **columns: Any) -> list[float | None]:
    """The probability that the first is better: 1 where it is shorter. No verdict (None) where both are empty."""
    lengths = [(len(a), len(b)) for a, b in zip(first, second, strict=True)]
    return [None if a == b == 0 else 0.5 if a == b else float(a < b) for a, b in lengths]
