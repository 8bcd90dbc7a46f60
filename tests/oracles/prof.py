"""PROF (arXiv:2509.03403): which rollouts of a group stay."""

from __future__ import annotations

from collections.abc import Sequence


def agreement(
    probabilities: Sequence[float], correct: bool, penalty: float = 10.0, min_steps: int = 2, max_steps: int = 30
) -> float:
    sign = 1 if correct else -1
    mean = sum((2 * p - 1) * sign for p in probabilities) / len(probabilities) if len(probabilities) else 0.0
    return mean - penalty * (len(probabilities) < min_steps or len(probabilities) > max_steps)


def kept(
    probabilities: Sequence[Sequence[float]],
    correct: Sequence[bool],
    groups: Sequence[int],
    drop: int,
    side: str = "both",
    **settings: float,
) -> list[bool]:
    out = [True] * len(correct)
    for group in {int(g) for g in groups}:
        rows = [i for i in range(len(correct)) if groups[i] == group]
        right, wrong = [i for i in rows if correct[i]], [i for i in rows if not correct[i]]
        of_right = round((len(right) - len(wrong) + drop) / 2)  # Python rounds half to even
        of_right = max(0, min(of_right, drop, len(right)))
        score = {i: agreement(probabilities[i], bool(correct[i]), **settings) for i in rows}  # type: ignore[arg-type]
        if side == "correct":
            score |= dict.fromkeys(wrong, 0.0)
        for side_rows, count in ((right, of_right), (wrong, drop - of_right)):
            for i in sorted(side_rows, key=lambda i: (score[i], i))[:count]:
                out[i] = False
    return out
