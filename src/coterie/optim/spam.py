"""SPAM: Adam that clips spikes, forgets its momentum now and then, and may keep it sparse (arXiv:2501.06842)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.optim.replay import require
from coterie.pieces import optimizer
from coterie.streams import stream


class SPAM(torch.optim.Optimizer):
    """An entry g of the gradient is a spike where g^2 > threshold v, v its second moment so far; it becomes
    sign(g) sqrt(threshold v). Every `reset_every` steps both moments are set to 0, and lr is warmed up by a cosine.

    Spikes are left alone in the first `start` steps and as long after a reset, while v is young, and wherever v is
    still 0, as in the embedding of a token not seen yet. `threshold` 0 clips nothing, `reset_every` 0 never resets.
    With `density` below 1, each tensor of two or more dimensions keeps moments of a random share of its entries, drawn
    anew at each reset; the others rest. The gradient itself is not changed.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
        weight_decay: float = 0.0, *, threshold: float = 5000.0, reset_every: int = 500, warmup: int = 150,
        start: int = 20, density: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        require("learning rate", lr, lr >= 0)
        require("beta", betas[0], 0 <= betas[0] < 1)
        require("beta", betas[1], 0 <= betas[1] < 1)
        require("eps", eps, eps >= 0)
        require("weight_decay", weight_decay, weight_decay >= 0)
        require("threshold", threshold, threshold >= 0)
        require("start (v is 0 at the first step, which would be clipped to 0)", start, start >= 2)
        require("density", density, 0 < density <= 1)
        super().__init__(params, dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, threshold=threshold, reset_every=reset_every,
            warmup=warmup, start=start, density=density, seed=seed,
        ))  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for kept in self.state.values():
            if "mask" in kept:
                kept["mask"] = kept["mask"].bool()  # loading casts to the parameter's dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        spikes: Any = 0
        entries = 0
        for group in self.param_groups:
            for index, p in enumerate(group["params"]):
                if p.grad is not None:
                    spikes += self._update(group, p, p.grad, index)
                    entries += self.state[p]["exp_avg"].numel()
        record("spam/spike_share", float(spikes) / max(entries, 1))
        return loss

    def _update(self, group: dict[str, Any], p: Tensor, g: Tensor, index: int) -> Tensor | int:
        """Step one parameter; returns how many spikes it had."""
        kept = self.state[p]
        n = kept["step"] = kept.get("step", 0) + 1
        age = n % group["reset_every"] if group["reset_every"] else n
        was_reset = age < n
        if n == 1 or age == 0:
            if group["density"] < 1 and p.dim() > 1:
                generator = torch.Generator(p.device).manual_seed(stream(group["seed"], "mask", n, index))
                kept["mask"] = torch.rand(p.shape, generator=generator, device=p.device) < group["density"]
            like = p[kept["mask"]] if "mask" in kept else p
            kept["exp_avg"], kept["exp_avg_sq"] = torch.zeros_like(like), torch.zeros_like(like)
        mask, m, v = kept.get("mask"), kept["exp_avg"], kept["exp_avg_sq"]
        g = g if mask is None else g[mask]
        spikes: Tensor | int = 0
        if group["threshold"] and age >= group["start"]:
            bound = (v * group["threshold"]).sqrt_()
            bound.masked_fill_(v == 0, math.inf)  # an entry without a past has nothing to be a spike of
            spikes = (g.abs() > bound).sum()
            g = g.clamp(-bound, bound)
        beta1, beta2 = group["betas"]
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = (v / (1 - beta2**n)).sqrt_().add_(group["eps"])
        lr, warm = group["lr"], 1.0
        if was_reset and age < group["warmup"]:
            warm = 1 - 0.99 * (1 + math.cos(math.pi * age / (group["warmup"] + 1))) / 2
        move = (m / denominator).mul_(-lr * warm / (1 - beta1**n))
        if mask is None:
            p.mul_(1 - lr * group["weight_decay"]).add_(move)
        else:
            p[mask] = p[mask].mul_(1 - lr * group["weight_decay"]).add_(move)
        return spikes


@optimizer(paper="arXiv:2501.06842")
def spam(
    parameters: Iterable[torch.nn.Parameter], *, lr: float = 1e-6, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-6, weight_decay: float = 0.0, threshold: float = 5000.0, reset_every: int = 500, warmup: int = 150,
    start: int = 20, density: float = 1.0, seed: int = 0,
) -> torch.optim.Optimizer:  # fmt: skip
    """AdamW that clips entries of the gradient far above their own second moment, and forgets its moments.

    threshold: a spike is g^2 above this many times the second moment, 0 clips nothing. reset_every: steps between
    resets of the moments, 0 is never. warmup: steps of cosine warm-up after a reset. start: steps after a start or a
    reset in which nothing is clipped, at least 2. density: share of each matrix's entries that have moments and move,
    drawn by `seed` anew at each reset.
    """
    return SPAM(
        parameters, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, threshold=threshold,
        reset_every=reset_every, warmup=warmup, start=start, density=density, seed=seed,
    )  # fmt: skip
