"""DCPO: right rollouts are also learned from as if drawn at the temperature that mends the entropy (2601.12730)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coterie.columns import per_decision
from coterie.metrics import record
from coterie.pieces import credit

LOG_LIMIT = 20.0


@credit(paper="arXiv:2601.12730", shape="B T")
class distribution_centric:
    """(1 - alpha) A + alpha [correct] rho: a share of REINFORCE on right rollouts, seen from another temperature. [B,T]

    rho = exp(logp_tempered - logp_old), both before the update, is what a decision would weigh had it been drawn at the
    run's temperature times `hot` (while the last batch's mean -logp_old is at most `target`) or `cold` (above it).
    alpha = a / (1 + a) with a = min(|target - that mean|, cap) / the share of right rollouts: it grows with the
    distance. It is 0 where nobody is right, and on the first batch, before which there is no mean. Log rho is limited
    to 20.
    """

    def __init__(self, *, target: float = 0.5, hot: float = 1.2, cold: float = 0.8, cap: float = 0.1) -> None:
        self.target, self.hot, self.cold, self.cap = target, hot, cold, cap
        self.mean: float | None = None

    @property
    def temperature(self) -> float:
        """The factor on the run's temperature at which logp_tempered is made."""
        return self.hot if self.mean is None or self.mean <= self.target else self.cold

    def __call__(
        self, advantages: Tensor, correct: Tensor, logp_tempered: Tensor, logp_old: Tensor, mask: Tensor
    ) -> Tensor:
        """[B] or [B,T] -> [B,T]"""
        share = float(correct.double().mean())
        alpha = 0.0
        if self.mean is not None and share > 0:
            excess = min(abs(self.target - self.mean), self.cap) / share
            alpha = excess / (1.0 + excess)
        record("dcpo/alpha", alpha)
        record("dcpo/temperature", self.temperature)
        if mask.any():
            self.mean = float(-logp_old[mask].double().mean())
            record("dcpo/surprise", self.mean)
        a = per_decision(advantages, mask)
        rho = (logp_tempered - logp_old).clamp(-LOG_LIMIT, LOG_LIMIT).exp()
        tempered = torch.where(correct.unsqueeze(-1), rho, torch.zeros_like(rho))
        return torch.where(mask, (1.0 - alpha) * a + alpha * tempered, 0.0).to(a.dtype)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]
