"""Statistics of an evaluation: P prompts, n sampled completions each. Pure functions on arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike


def avg_at_k(correct: ArrayLike) -> float:
    """Mean accuracy of a completion. correct: [P,n] bool."""
    return float(_table(correct).mean())


def pass_at_k(correct: ArrayLike, k: int) -> float:
    """Probability that at least one of k completions is right, unbiased from n >= k samples, averaged over prompts.

    1 - C(n-c,k) / C(n,k) with c right ones of n, as a product that never overflows (arXiv 2107.03374). [P,n] bool.
    Raises ValueError when k > n.
    """
    return float(_passes(_table(correct), k).mean())


def _passes(table: np.ndarray, k: int) -> np.ndarray:
    """pass@k of each prompt, [P]."""
    n = table.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= {n}, the completions a prompt has")
    wrong = n - table.sum(1)
    # C(n-c,k) / C(n,k) = prod over j < k of (n-c-j) / (n-j); a factor reaches 0 once fewer than k are wrong
    drawn = np.arange(k)
    fails = np.clip((wrong[:, None] - drawn) / (n - drawn), 0.0, None).prod(1)
    return 1.0 - fails


def maj_at_k(answers: Sequence[Sequence[Hashable]], correct: ArrayLike) -> float:
    """Accuracy of the commonest answer of each prompt; a tie counts as its expected value under a fair draw.

    answers: [P][n], compared by equality. correct: [P,n] bool, the verdict of each.
    """
    return float(_majorities(answers, _table(correct)).mean())


def _majorities(answers: Sequence[Sequence[Hashable]], table: np.ndarray) -> np.ndarray:
    """maj@k of each prompt, [P]."""
    scores = []
    for row, verdicts in zip(answers, table.tolist(), strict=True):
        votes: dict[Hashable, list[float]] = defaultdict(list)
        for answer, verdict in zip(row, verdicts, strict=True):
            votes[answer].append(verdict)
        most = max(map(len, votes.values()))
        scores.append(np.mean([np.mean(v) for v in votes.values() if len(v) == most]))
    return np.array(scores)


def bootstrap_interval(
    values: ArrayLike, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of `values` [P], resampling prompts with replacement.

    Prompts with equal values are exchangeable, so a resample is drawn as counts of the distinct values (multinomial):
    the same distribution as drawing indices, at a cost that grows with the distinct values and not with P.
    P equal values give an interval of width 0.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    if not len(distinct):
        raise ValueError("no values to resample")
    total = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, size=resamples)
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(drawn @ distinct / total, [tail, 1.0 - tail])
    return float(low), float(high)


def summarise(
    correct: ArrayLike,
    lengths: ArrayLike,
    *,
    answers: Sequence[Sequence[Hashable]] | None = None,
    truncated: ArrayLike | None = None,
    ks: Sequence[int] = (1,),
) -> dict[str, float]:
    """The metrics of one evaluation. correct, lengths, truncated: [P,n]; answers: [P][n].

    eval/accuracy (avg@n), eval/pass@k for the `ks` above 1, eval/maj@n, eval/length in decisions and
    eval/truncated_share, each with the ends of its 95% interval over prompts as NAME_low and NAME_high.
    """
    table = _table(correct)
    samples = table.shape[1]
    per_prompt = {"accuracy": table.mean(1)} | {f"pass@{k}": _passes(table, k) for k in ks if k > 1}
    if answers is not None and samples > 1:
        per_prompt[f"maj@{samples}"] = _majorities(answers, table)
    per_prompt["length"] = _table(lengths, "lengths").mean(1)
    if truncated is not None:
        per_prompt["truncated_share"] = _table(truncated, "truncated").mean(1)
    out: dict[str, float] = {}
    for name, values in per_prompt.items():
        low, high = bootstrap_interval(values)
        out |= {f"eval/{name}": float(values.mean()), f"eval/{name}_low": low, f"eval/{name}_high": high}
    return out


def _table(values: ArrayLike, name: str = "correct") -> np.ndarray:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"{name} must be [prompts, samples] and not empty, got shape {list(table.shape)}")
    return table
