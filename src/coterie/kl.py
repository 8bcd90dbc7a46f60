"""Estimators of KL(policy || reference) from a sampled decision's log-ratio (Schulman 2020)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor


def kl_estimate(d: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """k1 = d, k2 = d^2/2, k3 = exp(-d) - 1 + d, where d = logp - logp_ref. Elementwise.

    As values under the policy's own samples k1 and k3 are unbiased. As loss terms k1's gradient has zero mean, k2's is
    the gradient of the reverse KL, k3's leans towards the forward KL. The exponent is limited to 20.
    """
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d * d
    return (-d).clamp(max=20.0).exp() - 1.0 + d
