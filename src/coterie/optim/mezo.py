"""MeZO: zeroth-order SGD in the memory of inference (arXiv:2305.17333)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from coterie.optim.zeroth_order import ZerothOrder
from coterie.pieces import optimizer


class MeZO(ZerothOrder):
    """w -= lr (L(w + eps z) - L(w - eps z)) / (2 eps) z, with z replayed from a seed; `samples` of them averaged."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-6, *, eps: float = 1e-3, samples: int = 1,
        weight_decay: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, eps=eps, samples=samples, weight_decay=weight_decay, seed=seed)


@optimizer(paper="arXiv:2305.17333")
def mezo(
    parameters: Iterable[torch.nn.Parameter], *, lr: float = 1e-6, eps: float = 1e-3, samples: int = 1,
    weight_decay: float = 0.0, seed: int = 0,
) -> torch.optim.Optimizer:  # fmt: skip
    """Zeroth-order SGD from two losses along a random direction that a seed replays: the memory of inference.

    eps: distance at which the loss is looked at, above 0. samples: directions averaged, two losses each. seed: of the
    directions.
    """
    return MeZO(parameters, lr, eps=eps, samples=samples, weight_decay=weight_decay, seed=seed)
