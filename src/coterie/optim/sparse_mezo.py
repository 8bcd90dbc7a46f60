"""Sparse MeZO: zeroth-order steps of the small weights alone (arXiv:2402.15751)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.optim.mezo import MeZO
from coterie.optim.replay import require
from coterie.optim.zeroth_order import Owned
from coterie.pieces import optimizer


class SparseMeZO(MeZO):
    """MeZO that shifts and moves only weights with |w| <= h, where h of each tensor leaves out a share `sparsity` of
    its weights, the largest, when the first step is taken; h then stays.

    Which weights are small is asked once a step, before any is shifted, and held for that step: a byte a weight.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-6, *, eps: float = 1e-3, sparsity: float = 0.75, samples: int = 1,
        weight_decay: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        require("sparsity", sparsity, 0 <= sparsity < 1)
        super().__init__(params, lr, eps=eps, samples=samples, weight_decay=weight_decay, seed=seed)
        self.defaults["sparsity"] = sparsity
        for group in self.param_groups:
            group.setdefault("sparsity", sparsity)
        self._small: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> float:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if group["sparsity"] == 0:
                    continue
                if "threshold" not in self.state[p]:
                    rank = max(1, p.numel() - round(group["sparsity"] * p.numel()))
                    self.state[p]["threshold"] = float(p.abs().flatten().kthvalue(rank).values)
                self._small[p] = p.abs() <= self.state[p]["threshold"]
        small = sum(int(s.sum()) for s in self._small.values())
        record("sparse_mezo/small_share", small / max(1, sum(s.numel() for s in self._small.values())))
        try:
            return super().step(closure)
        finally:
            self._small = {}

    def _directions(self, block: list[Owned], seed: int) -> Iterator[Tensor]:
        for (_, p), z in zip(block, super()._directions(block, seed), strict=True):
            yield z.mul_(self._small[p]) if p in self._small else z


@optimizer(paper="arXiv:2402.15751")
def sparse_mezo(
    parameters: Iterable[torch.nn.Parameter], *, lr: float = 1e-6, eps: float = 1e-3, sparsity: float = 0.75,
    samples: int = 1, weight_decay: float = 0.0, seed: int = 0,
) -> torch.optim.Optimizer:  # fmt: skip
    """MeZO on the small weights of each tensor: the large ones, where noise hurts most, are left alone.

    sparsity: share of each tensor's weights, the largest at the first step, that rest; 0 is MeZO. eps: distance at
    which the loss is looked at, above 0. samples: directions averaged. seed: of the directions.
    """
    return SparseMeZO(parameters, lr, eps=eps, sparsity=sparsity, samples=samples, weight_decay=weight_decay, seed=seed)
