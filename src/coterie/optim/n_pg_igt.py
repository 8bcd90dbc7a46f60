"""N-PG-IGT: normalised steps along a momentum of gradients taken ahead of the weights (arXiv:2302.01734)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.optim.replay import require
from coterie.pieces import optimizer


class NPGIGT(torch.optim.Optimizer):
    """d_t = (1 - eta) d_{t-1} + eta grad L(w_t + (1 - eta) / eta (w_t - w_{t-1})), w_{t+1} = w_t - lr d_t / |d_t|.

    Looking ahead makes up for the momentum's age: where the loss is quadratic, d_t is the gradient at w_t, its noise
    averaged. The norm is that of all parameters together. `eta` 1 is normalised gradient descent. `step` needs a
    closure that leaves the gradient at the weights as they then are, and returns the loss.
    """

    asks: Literal["gradient"] = "gradient"

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, *, eta: float = 0.1, weight_decay: float = 0.0) -> None:
        require("learning rate", lr, lr >= 0)
        require("eta", eta, 0 < eta <= 1)
        require("weight_decay", weight_decay, weight_decay >= 0)
        super().__init__(params, dict(lr=lr, eta=eta, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        owned = [(group, p) for group in self.param_groups for p in group["params"]]
        for group, p in owned:
            kept, eta = self.state[p], group["eta"]
            before = kept.get("previous", p)
            ahead = p + (1 - eta) / eta * (p - before)
            kept["previous"] = p.clone()
            p.copy_(ahead)
        try:
            with torch.enable_grad():
                loss = closure()
        finally:
            for _, p in owned:
                p.copy_(self.state[p]["previous"])
        for group, p in owned:
            if p.grad is not None:
                kept = self.state[p]
                kept["direction"] = (
                    kept["direction"].lerp_(p.grad, group["eta"]) if "direction" in kept else p.grad.clone()
                )
        go([(group, p, self.state[p].get("direction")) for group, p in owned], normalise=True)
        return loss


def go(moves: list[tuple[dict[str, Any], Tensor, Tensor | None]], *, normalise: bool) -> None:
    """Step each parameter against its direction, all of them together over their common norm with `normalise`."""
    norms = [d.norm().double() for _, _, d in moves if d is not None]
    norm = float(torch.stack([n.cpu() for n in norms]).norm()) if norms else 0.0
    record("optimizer/direction_norm", norm)
    for group, p, d in moves:
        if d is not None:
            p.mul_(1 - group["lr"] * group["weight_decay"])
            if norm > 0:
                p.add_(d, alpha=-group["lr"] / (norm if normalise else 1.0))


@optimizer(paper="arXiv:2302.01734")
def n_pg_igt(
    parameters: Iterable[torch.nn.Parameter], *, lr: float = 1e-3, eta: float = 0.1, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Normalised policy gradient with implicit gradient transport: each step is lr long, whatever the gradient.

    lr: length of a step. eta: share of the new gradient in the momentum; it is taken (1 - eta) / eta steps ahead. 1 is
    normalised gradient descent.
    """
    return NPGIGT(parameters, lr, eta=eta, weight_decay=weight_decay)
