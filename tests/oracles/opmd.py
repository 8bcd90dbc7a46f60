"""Kimi's online policy mirror descent as regularised REINFORCE (arXiv:2501.12599, 2509.24203), over 1 + tau.

Kimi: -A log pi(y) + tau/2 (log pi(y) - log pi_old(y))^2 with log pi(y) = sum_t logp_t. Trinity-RFT's REC loss has the
same square a token (`regularizer="k2"`, coefficient tau/2) and no divisor; its `opmd` loss has the divisor 1 + tau and
no square. The divisor scales loss and gradient alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def _advantage(advantages: Any, i: int, t: int) -> float:
    return float(advantages[i] if advantages.ndim == 1 else advantages[i, t])


def opmd_sequence(
    logp: Any, logp_old: Any, advantages: Any, mask: Any, tau: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """[B] values and [B,T] derivatives."""
    value, gradient = np.zeros(mask.shape[0]), np.zeros(mask.shape)
    for i in range(mask.shape[0]):
        decisions = [t for t in range(mask.shape[1]) if mask[i, t]]
        gap = math.fsum(float(logp[i, t] - logp_old[i, t]) for t in decisions)
        pull = math.fsum(_advantage(advantages, i, t) * float(logp[i, t]) for t in decisions)
        value[i] = (-pull + tau / 2 * gap**2) / (1 + tau)
        for t in decisions:
            gradient[i, t] = (-_advantage(advantages, i, t) + tau * gap) / (1 + tau)
    return value, gradient


def opmd_token(logp: Any, logp_old: Any, advantages: Any, mask: Any, tau: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """[B,T] values and derivatives."""
    value, gradient = np.zeros(mask.shape), np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        a, d = _advantage(advantages, i, t), float(logp[i, t] - logp_old[i, t])
        value[i, t] = (-a * float(logp[i, t]) + tau / 2 * d**2) / (1 + tau)
        gradient[i, t] = (-a + tau * d) / (1 + tau)
    return value, gradient
