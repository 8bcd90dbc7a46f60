"""HARPG: a momentum of gradients carried to the new weights by the curvature on the way (arXiv:2302.01734)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

from coterie.optim.n_pg_igt import go
from coterie.optim.replay import require
from coterie.pieces import optimizer
from coterie.streams import stream


class HARPG(torch.optim.Optimizer):
    """d_t = (1 - eta) (d_{t-1} + H(y) u) + eta grad L(w_t), with u = w_t - w_{t-1} and y a random point between them.

    H(y) u is the difference of the gradients at y + radius u and y - radius u, over 2 radius: exact where the loss is
    quadratic. w -= lr d / |d|, the norm over all parameters, or w -= lr d without `normalise`. `step` needs a closure
    that leaves the gradient at the weights as they then are, and calls it three times.
    """

    asks: Literal["gradient"] = "gradient"

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, *, eta: float = 0.1, normalise: bool = True, radius: float = 0.1,
        weight_decay: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        require("learning rate", lr, lr >= 0)
        require("eta", eta, 0 < eta <= 1)
        require("radius", radius, radius > 0)
        require("weight_decay", weight_decay, weight_decay >= 0)
        super().__init__(params, dict(
            lr=lr, eta=eta, normalise=normalise, radius=radius, weight_decay=weight_decay, seed=seed
        ))  # fmt: skip
        self.param_groups[0].setdefault("steps", 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        head = self.param_groups[0]
        owned = [(group, p) for group in self.param_groups for p in group["params"]]
        here = [p.clone() for _, p in owned]
        with torch.enable_grad():
            loss = closure()
        first = head["steps"] == 0
        for group, p in owned:
            if p.grad is not None:
                d = self.state[p].setdefault("direction", torch.zeros_like(p))
                d.lerp_(p.grad, 1.0 if first else group["eta"])
        if not first:
            between = random.Random(stream(head["seed"], "segment", head["steps"])).random()
            for side in (1, -1):
                try:
                    for (_, p), now in zip(owned, here, strict=True):
                        before = self.state[p]["previous"]
                        p.copy_(before + (between + side * head["radius"]) * (now - before))
                    with torch.enable_grad():
                        closure()
                finally:
                    for (_, p), now in zip(owned, here, strict=True):
                        p.copy_(now)
                for group, p in owned:
                    if p.grad is not None:
                        d = self.state[p].setdefault("direction", torch.zeros_like(p))
                        d.add_(p.grad, alpha=side * (1 - group["eta"]) / (2 * head["radius"]))
        for (_, p), now in zip(owned, here, strict=True):
            self.state[p]["previous"] = now
        head["steps"] += 1
        go([(group, p, self.state[p].get("direction")) for group, p in owned], normalise=head["normalise"])
        return loss


@optimizer(paper="arXiv:2302.01734")
def harpg(
    parameters: Iterable[torch.nn.Parameter], *, lr: float = 1e-3, eta: float = 0.1, normalise: bool = True,
    radius: float = 0.1, weight_decay: float = 0.0, seed: int = 0,
) -> torch.optim.Optimizer:  # fmt: skip
    """Hessian-aided recursive policy gradient: momentum is carried along by the change of the gradient on the way.

    lr: length of a step, or its factor without `normalise`. eta: share of the new gradient in the momentum, 1 is
    (normalised) gradient descent. radius: half the distance, in steps, over which the change is measured. seed: of the
    point at which it is measured.
    """
    return HARPG(parameters, lr, eta=eta, normalise=normalise, radius=radius, weight_decay=weight_decay, seed=seed)
