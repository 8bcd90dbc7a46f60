"""RiskPO's advantage: what a bundle of prompts scores, by where that stands among all scores (arXiv:2510.00911)."""

from typing import Any, Literal

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import (
    group_count,
    group_extreme,
    group_is_constant,
    group_mean,
    group_position,
    group_std,
    group_sum,
)

SMALL = 1e-6


@credit(paper="arXiv:2510.00911")
class mixed_value_at_risk:
    """Mixed value at risk of a bundle's score, shared among its rollouts. [B] -> [B]

    bundle: how many consecutive prompts make a bundle; the k-th rollouts of its prompts are one paper, whose score X is
    the sum of their rewards (scaled up where a bundle or a paper is not full). a and b are the quantiles low and high
    of X: those of the first batch, then moved by rate * (level - share of papers below) a batch, after use. The paper
    gets (tail * c + g) / (tail + 1), with g = ((X-a)+ - (X-b)+) / (high - low), less (b-a) / (high - low) if natural,
    and c = -(a-X)+ / low. scale: "std" divides it by the standard deviation of the bundle's papers (not where they are
    equal), "none" does not. share: "uniform" gives it to each rollout, "sum_mean" in proportion to reward minus the
    prompt's mean, in equal parts where these add up to nothing. Equal rewards in the first batch get exactly 0.
    """

    def __init__(
        self,
        *,
        bundle: int = 5,
        low: float = 0.2,
        high: float = 0.8,
        tail: float = 1.5,
        rate: float = 0.1,
        natural: bool = False,
        share: Literal["sum_mean", "uniform"] = "sum_mean",
        scale: Literal["std", "none"] = "std",
        ddof: int = 1,
        eps: float = 1e-6,
    ) -> None:
        self.bundle, self.low, self.high, self.tail, self.rate = bundle, low, high, tail, rate
        self.natural, self.share, self.scale, self.ddof, self.eps = natural, share, scale, ddof, eps
        self.quantiles = torch.zeros(0, dtype=torch.float64)

    def __call__(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """[B] -> [B]"""
        r, rows = rewards.double(), torch.arange(len(rewards), device=groups.device)
        place, first = group_position(rows, groups), group_extreme(rows, groups, largest=False)
        question = (first == rows).long().cumsum(0)[first] - 1
        bundle = question // self.bundle
        paper = bundle * (int(place.max()) + 1) + place
        mean = group_mean(r, paper).clamp(group_extreme(r, paper, False), group_extreme(r, paper, True))
        of_paper = group_extreme(rows, paper, largest=False)  # one row stands for each paper
        one = of_paper == rows
        x, levels = self.bundle * mean, r.new_tensor([self.low, self.high])
        if len(self.quantiles) == 0:
            self.quantiles = torch.quantile(x[one], levels)
        a, b = self.quantiles.to(r)
        b = torch.maximum(a, b)
        below = (x[one].unsqueeze(-1) < torch.stack([a, b])).double().mean(0)
        self.quantiles = torch.stack([a, b]) + self.rate * (levels - below)
        body = (x - a).clamp_min(0.0) - (x - b).clamp_min(0.0) - (b - a if self.natural else 0.0)
        risk = (
            body / (self.high - self.low + self.eps) - self.tail * (a - x).clamp_min(0.0) / (self.low + self.eps)
        ) / (self.tail + 1)
        if self.scale == "std":
            std = group_std(x[one], bundle[one], self.ddof) + self.eps
            std = std.masked_fill(group_is_constant(x[one], bundle[one]), 1.0)
            risk = risk / torch.ones_like(x).masked_scatter(one, std)[of_paper]
        record("risk/low_quantile", float(a))
        record("risk/high_quantile", float(b))
        record("risk/tail_share", (x < a).double())
        return (risk * self._part(r, groups, paper)).to(rewards.dtype)

    def _part(self, r: Tensor, groups: Tensor, paper: Tensor) -> Tensor:
        if self.share == "uniform":
            return torch.ones_like(r)
        gain = (r - group_mean(r, groups)).masked_fill(group_is_constant(r, groups), 0.0)
        total = group_sum(gain, paper)
        clear = total.abs() > SMALL
        return torch.where(clear, gain / total.masked_fill(~clear, 1.0), 1 / group_count(paper, r.dtype))

    def state_dict(self) -> dict[str, Any]:
        return {"quantiles": self.quantiles.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.quantiles = state["quantiles"]
