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
    table = _table(correct)
    n = table.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= {n}, the completions a prompt has")
    wrong = n - table.sum(1)
    # C(n-c,k) / C(n,k) = prod over j < k of (n-c-j) / (n-j); a factor reaches 0 once fewer than k are wrong
    drawn = np.arange(k)
    fails = np.clip((wrong[:, None] - drawn) / (n - drawn), 0.0, None).prod(1)
    return float((1.0 - fails).mean())


def maj_at_k(answers: Sequence[Sequence[Hashable]], correct: ArrayLike) -> float:
    """Accuracy of the commonest answer of each prompt; a tie counts as its expected value under a fair draw.

    answers: [P][n], compared by equality. correct: [P,n] bool, the verdict of each.
    """
    table = _table(correct)
    scores = []
    for row, verdicts in zip(answers, table.tolist(), strict=True):
        votes: dict[Hashable, list[float]] = defaultdict(list)
        for answer, verdict in zip(row, verdicts, strict=True):
            votes[answer].append(verdict)
        most = max(map(len, votes.values()))
        scores.append(np.mean([np.mean(v) for v in votes.values() if len(v) == most]))
    return float(np.mean(scores))


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

    eval/accuracy (avg@n) with its 95% interval over prompts, eval/pass@k for the `ks` above 1, eval/maj@n,
    eval/length in decisions, eval/truncated_share.
    """
    table = _table(correct)
    samples = table.shape[1]
    low, high = bootstrap_interval(table.mean(1))
    out = {"eval/accuracy": avg_at_k(table), "eval/accuracy_low": low, "eval/accuracy_high": high}
    out |= {f"eval/pass@{k}": pass_at_k(table, k) for k in ks if k > 1}
    if answers is not None and samples > 1:
        out[f"eval/maj@{samples}"] = maj_at_k(answers, table)
    out["eval/length"] = float(np.asarray(lengths, dtype=np.float64).mean())
    if truncated is not None:
        out["eval/truncated_share"] = float(np.asarray(truncated, dtype=np.float64).mean())
    return out


def _table(correct: ArrayLike) -> np.ndarray:
    table = np.asarray(correct, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"correct must be [prompts, samples] and not empty, got shape {list(table.shape)}")
    return table
