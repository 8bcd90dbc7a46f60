"""Importance weights for the mismatch of sampler and trainer, decision by decision."""

from __future__ import annotations

import math

import numpy as np


def ratios(logp_train: np.ndarray, logp_old: np.ndarray, mask: np.ndarray, level: str) -> np.ndarray:
    """Trainer's probability over the sampler's for each decision, log-ratios limited to 20. NaN where masked."""
    out = np.full(mask.shape, np.nan)
    for i in range(len(mask)):
        logs = [logp_train[i, t] - logp_old[i, t] for t in range(mask.shape[1]) if mask[i, t]]
        whole = sum(logs) if level == "sequence" else sum(logs) / max(len(logs), 1)
        for t in range(mask.shape[1]):
            if mask[i, t]:
                log = logp_train[i, t] - logp_old[i, t] if level == "token" else whole
                out[i, t] = math.exp(min(max(log, -20.0), 20.0))
    return out


def _weight(weights: np.ndarray, i: int, t: int) -> float:
    return float(weights[i] if weights.ndim == 1 else weights[i, t])


def truncated(logp_train, logp_old, mask, weights, level="token", cap=2.0) -> np.ndarray:
    r = ratios(logp_train, logp_old, mask, level)
    out = np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        out[i, t] = _weight(weights, i, t) * (cap if r[i, t] > cap else r[i, t])
    return out


def masked(logp_train, logp_old, mask, weights, level="token", low=0.5, high=5.0, reweight=True) -> np.ndarray:
    r = ratios(logp_train, logp_old, mask, level)
    out = np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        if low <= r[i, t] <= high:
            out[i, t] = _weight(weights, i, t) * (r[i, t] if reweight else 1.0)
    return out
