"""ZO-RankSGD: descent where the loss is known only by its order (arXiv:2303.03751)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch

from coterie.metrics import record
from coterie.optim.replay import directions, require
from coterie.pieces import optimizer
from coterie.streams import stream


class ZORankSGD(torch.optim.Optimizer):
    """`candidates` random shifts of the weights, w + mu xi_i, are ranked by the loss, down to the `best`-th.

    g is the mean of xi_j - xi_i over the pairs in which i is known to be better than j (i among the best, j after it),
    and w -= lr g. Of the losses nothing but their order is used. `line_search` above 1 ranks as many points w - lr
    shrink^l g, l = 0, 1, …, and goes to the best of them. Shifts are replayed from their seeds and never stored.
    """

    asks: Literal["loss"] = "loss"

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-6, *, mu: float = 1e-3, candidates: int = 10, best: int = 3,
        line_search: int = 1, shrink: float = 0.5, weight_decay: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        require("learning rate", lr, lr >= 0)
        require("mu", mu, mu > 0)
        require("candidates", candidates, candidates >= 2)
        require("best", best, 1 <= best <= candidates)
        require("line_search", line_search, line_search >= 1)
        require("shrink", shrink, 0 < shrink < 1)
        require("weight_decay", weight_decay, weight_decay >= 0)
        super().__init__(params, dict(
            lr=lr, mu=mu, candidates=candidates, best=best, line_search=line_search, shrink=shrink,
            weight_decay=weight_decay, seed=seed,
        ))  # fmt: skip
        self.param_groups[0].setdefault("steps", 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> float:  # type: ignore[override]
        head = self.param_groups[0]
        seeds = [stream(head["seed"], "direction", head["steps"], i) for i in range(head["candidates"])]
        head["steps"] += 1
        losses = []
        for seed in seeds:
            self._shift({seed: 1.0}, "mu", 1.0)
            try:
                losses.append(float(closure()))
            finally:
                self._shift({seed: 1.0}, "mu", -1.0)
        slope = dict(zip(seeds, ranked_weights(losses, head["best"]), strict=True))
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
        self._shift(slope, "lr", -1.0)
        if head["line_search"] > 1:
            self._search(closure, slope, [head["shrink"] ** i for i in range(head["line_search"])])
        return losses[0]

    def _shift(self, weights: dict[int, float], unit: str, times: float) -> None:
        """Add the weighted sum of directions, in units of a setting of each parameter's group."""
        owned = [(group, p) for group in self.param_groups for p in group["params"]]
        for (group, p), *zs in zip(owned, *(directions((p for _, p in owned), s) for s in weights), strict=True):
            for weight, z in zip(weights.values(), zs, strict=True):
                p.add_(z, alpha=times * weight * group[unit])

    def _search(self, closure: Callable[[], Any], slope: dict[int, float], lengths: list[float]) -> None:
        """From the whole step back to the best of the shorter ones."""
        losses, at = [float(closure())], lengths[0]
        for length in lengths[1:]:
            self._shift(slope, "lr", at - length)
            at = length
            losses.append(float(closure()))
        best = lengths[int(np.argmin(losses))]
        self._shift(slope, "lr", at - best)
        record("zo_ranksgd/length", best)


def ranked_weights(losses: list[float], best: int) -> np.ndarray:
    """What each shift weighs in the estimate: how many are known to be better less how many are known to be worse, over
    the pairs whose order is known. Sums to 0. [m]
    """
    m = len(losses)
    rank = np.empty(m, dtype=int)
    rank[np.argsort(losses, kind="stable")] = np.arange(m)
    better = np.minimum(rank, best)
    worse = np.where(rank < best, m - 1 - rank, 0)
    return (better - worse) / (best * (best - 1) / 2 + best * (m - best))


@optimizer(paper="arXiv:2303.03751")
def zo_ranksgd(
    parameters: Iterable[torch.nn.Parameter], *, lr: float = 1e-6, mu: float = 1e-3, candidates: int = 10,
    best: int = 3, line_search: int = 1, shrink: float = 0.5, weight_decay: float = 0.0, seed: int = 0,
) -> torch.optim.Optimizer:  # fmt: skip
    """Descent from the order of the losses at random shifts of the weights; their values are never used.

    mu: length of the shifts, times a standard normal. candidates: shifts a step. best: how many of them are put in
    order, the others only come after. line_search: step lengths tried, lr shrink^l. seed: of the shifts.
    """
    return ZORankSGD(
        parameters, lr, mu=mu, candidates=candidates, best=best, line_search=line_search, shrink=shrink,
        weight_decay=weight_decay, seed=seed,
    )  # fmt: skip
