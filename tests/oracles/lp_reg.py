"""Lp-Reg (arXiv:2510.03222): which decisions are protected, and the loss of each with its derivative by logp."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from oracles.ppo_clip import ppo_clip
from oracles.ratios import token_ratio


def log_proxy(logits: list[float], min_p: float) -> list[float]:
    """Log-probs after tokens under min_p times the largest probability were cut; -inf for these."""
    total = math.fsum(math.exp(x) for x in logits)
    p = [math.exp(x) / total for x in logits]
    kept = [x if x >= min_p * max(p) else 0.0 for x in p]
    return [math.log(x / math.fsum(kept)) if x > 0 else -math.inf for x in kept]


def lp_reg(
    n: dict[str, Any],
    share: float = 0.01,
    coef: float = 1.0,
    eps_low: float = 1.0,
    eps_high: float = 9.0,
) -> tuple[np.ndarray, np.ndarray]:
    """[B,T] losses and derivatives of a table of columns; advantages [B] or [B,T]."""
    mask, logp, target = n["mask"], n["logp"], n["logp_min_p"]
    ratio, slope = token_ratio(logp, n["logp_old"], mask)
    wide = np.ndim(n["advantages"]) == 2
    value, gradient, chosen = np.zeros(mask.shape), np.zeros(mask.shape), set()
    for g in set(n["groups"].tolist()):
        bad = []
        for i, t in zip(*np.nonzero(mask), strict=True):
            a = float(n["advantages"][i, t] if wide else n["advantages"][i])
            if n["groups"][i] == g and a < 0:
                bad.append((float(logp[i, t]), i, t))
        k = math.floor(len(bad) * share + 1e-9)
        if k > 1:
            chosen |= {(i, t) for x, i, t in sorted(bad)[:k] if x < target[i, t]}
    for i, t in zip(*np.nonzero(mask), strict=True):
        a = float(n["advantages"][i, t] if wide else n["advantages"][i])
        if (i, t) in chosen:
            d = float(target[i, t] - logp[i, t])
            k3 = math.exp(d) - d - 1
            value[i, t] = -a * ratio[i, t] + coef * min(k3, 10.0)
            gradient[i, t] = -a * slope[i, t] + (coef * (1 - math.exp(d)) if k3 < 10 else 0.0)
        else:
            surrogate, by_ratio = ppo_clip(float(ratio[i, t]), a, eps_low, eps_high)
            value[i, t], gradient[i, t] = -surrogate, -by_ratio * slope[i, t]
    return value, gradient
