"""Zeroth-order steps: the loss at two points along a random direction tells how far to go along it (arXiv:2402.11592).

The direction is replayed from its seed, so no gradient and no copy of the weights is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from coterie.metrics import record
from coterie.optim.replay import directions, require
from coterie.pieces import optimizer
from coterie.streams import stream

Owned = tuple[dict[str, Any], Tensor]
"""A parameter, and the group of settings it is in."""


class ZerothOrder(torch.optim.Optimizer):
    """The gradient is estimated as s z, with z standard normal and s the slope of the loss along z.

    s = (L(w + eps z) - L(w - eps z)) / (2 eps) with `sides` 2, (L(w + eps z) - L(w)) / eps with 1; `eps` 0 is the
    limit, the forward gradient <grad L, z> z, which a backward pass gives. `samples` directions are averaged. With
    `blocks` above 1 the parameters are cut into that many runs, each with directions and losses of its own. `density`
    keeps a random share of each direction's entries.

    `rule`: "sgd" steps by lr s z, with `momentum` if there is any; "sign" by lr sign(s) z; "adam" gives the estimate to
    Adam. `conservative` looks at both ends of the step and goes to the lowest of the three losses. `step` needs a
    closure that returns the loss; it is called at shifted weights, which are put back to rounding.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-6, *, eps: float = 1e-3, rule: str = "sgd", momentum: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999), adam_eps: float = 1e-8, sides: int = 2, samples: int = 1,
        blocks: int = 1, density: float = 1.0, conservative: bool = False, weight_decay: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        require("learning rate", lr, lr >= 0)
        require("eps", eps, eps >= 0)
        require("momentum", momentum, 0 <= momentum < 1)
        require("sides", sides, sides in (1, 2))
        require("samples", samples, samples >= 1)
        require("blocks", blocks, blocks >= 1)
        require("density", density, 0 < density <= 1)
        require("weight_decay", weight_decay, weight_decay >= 0)
        if rule not in ("sgd", "sign", "adam") or (momentum and rule != "sgd"):
            raise ValueError(f"Invalid rule: {rule} with momentum {momentum}; momentum is of rule sgd")
        if conservative and (rule == "adam" or momentum):
            raise ValueError("Invalid conservative: the step must be a replayed one, of rule sgd or sign, no momentum")
        super().__init__(params, dict(
            lr=lr, eps=eps, rule=rule, momentum=momentum, betas=betas, adam_eps=adam_eps, sides=sides, samples=samples,
            blocks=blocks, density=density, conservative=conservative, weight_decay=weight_decay, seed=seed,
        ))  # fmt: skip
        self.param_groups[0].setdefault("steps", 0)

    @property
    def asks(self) -> Literal["loss", "gradient"]:
        return "loss" if self.param_groups[0]["eps"] else "gradient"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> float:  # type: ignore[override]
        head = self.param_groups[0]
        owned: list[Owned] = [(group, p) for group in self.param_groups for p in group["params"]]
        here = self._here(closure) if head["sides"] == 1 or not head["eps"] else None
        found, losses = [], [] if here is None else [here]
        for b, chosen in enumerate(np.array_split(np.arange(len(owned)), min(head["blocks"], len(owned)))):
            block = [owned[i] for i in chosen]
            slopes = {}
            for sample in range(head["samples"]):
                seed = stream(head["seed"], "direction", head["steps"], b, sample)
                slopes[seed] = self._slope(closure, block, seed, here, losses)
            found.append((block, slopes))
        head["steps"] += 1
        for group, p in owned:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        if head["conservative"]:
            self._take_the_best(closure, found)
        else:
            self._move(found, 1.0)
        return losses[0]

    def _here(self, closure: Callable[[], Any]) -> float:
        if self.asks == "loss":
            return float(closure())
        with torch.enable_grad():
            return float(closure())

    def _directions(self, block: list[Owned], seed: int) -> Iterator[Tensor]:
        """z of each parameter of a block, again and again the same."""
        return directions((p for _, p in block), seed, self.param_groups[0]["density"])

    def _shift(self, block: list[Owned], seed: int, by: float) -> None:
        for (group, p), z in zip(block, self._directions(block, seed), strict=True):
            p.add_(z, alpha=by * group["eps"])

    def _slope(
        self, closure: Callable[[], Any], block: list[Owned], seed: int, here: float | None, losses: list[float]
    ) -> float:
        """Change of the loss per unit of eps along a direction; where eps is 0, the slope itself."""
        if self.asks == "gradient":
            pairs = zip(block, self._directions(block, seed), strict=True)
            return sum(float((p.grad * z).sum()) for (_, p), z in pairs if p.grad is not None)
        at = 1.0
        self._shift(block, seed, at)
        try:
            losses.append(float(closure()))
            if here is None:
                at = -1.0
                self._shift(block, seed, -2.0)
                losses.append(float(closure()))
        finally:
            self._shift(block, seed, -at)
        change = losses[-1] - here if here is not None else (losses[-2] - losses[-1]) / 2
        record("zeroth_order/slope", abs(change) / block[0][0]["eps"])
        return change

    def _estimates(
        self, found: list[tuple[list[Owned], dict[int, float]]]
    ) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
        """Group, parameter and estimated gradient, one parameter at a time."""
        for block, slopes in found:
            replayed = [self._directions(block, seed) for seed in slopes]
            for (group, p), *zs in zip(block, *replayed, strict=True):
                scale = group["eps"] or 1.0
                factors = [float(np.sign(s)) if group["rule"] == "sign" else s / scale for s in slopes.values()]
                estimate = zs[0].mul_(factors[0] / len(zs))
                for factor, z in zip(factors[1:], zs[1:], strict=True):
                    estimate.add_(z, alpha=factor / len(zs))
                yield group, p, estimate

    def _move(self, found: Any, times: float) -> None:
        """Take the step `times` times."""
        for group, p, g in self._estimates(found):
            kept = self.state[p]
            if group["momentum"]:
                g = kept["momentum"] = kept["momentum"].mul_(group["momentum"]).add_(g) if "momentum" in kept else g
            if group["rule"] == "adam":
                beta1, beta2 = group["betas"]
                if "exp_avg" not in kept:
                    kept["exp_avg"], kept["exp_avg_sq"], kept["step"] = torch.zeros_like(p), torch.zeros_like(p), 0
                t = kept["step"] = kept["step"] + 1
                kept["exp_avg"].lerp_(g, 1 - beta1)
                kept["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
                denominator = (kept["exp_avg_sq"] / (1 - beta2**t)).sqrt_().add_(group["adam_eps"])
                g = kept["exp_avg"] / denominator / (1 - beta1**t)
            p.add_(g, alpha=-group["lr"] * times)

    def _take_the_best(self, closure: Callable[[], Any], found: Any) -> None:
        """Of the point, the step and the step backwards, the one of least loss; the point where they are level."""
        losses, at = [self._here(closure)], 0.0
        for to in (1.0, -1.0):
            self._move(found, to - at)
            at = to
            losses.append(self._here(closure))
        best = (0.0, 1.0, -1.0)[int(np.argmin(losses))]
        if best != at:
            self._move(found, best - at)
        record("zeroth_order/accepted", float(best == 1.0))


@optimizer(paper="arXiv:2402.11592")
def zeroth_order(
    parameters: Iterable[torch.nn.Parameter], *, lr: float = 1e-6, eps: float = 1e-3,
    rule: Literal["sgd", "sign", "adam"] = "sgd", momentum: float = 0.0, beta1: float = 0.9, beta2: float = 0.999,
    sides: Literal[1, 2] = 2, samples: int = 1, blocks: int = 1, density: float = 1.0, conservative: bool = False,
    weight_decay: float = 0.0, seed: int = 0,
) -> torch.optim.Optimizer:  # fmt: skip
    """Steps from losses alone, along random directions that a seed replays: no backward pass, no gradient in memory.

    eps: distance at which the loss is looked at, 0 is the forward gradient (by a backward pass). rule: sgd, sign (of
    the slope) or adam. momentum: of rule sgd. beta1, beta2: of rule adam. sides: 2 looks ahead and back, 1 ahead and
    here. samples: directions averaged. blocks: runs of parameters that are shifted one after the other. density: share
    of a direction's entries that are not 0. conservative: go to the best of here, the step and its opposite. seed: of
    the directions.
    """
    return ZerothOrder(
        parameters, lr=lr, eps=eps, rule=rule, momentum=momentum, betas=(beta1, beta2), sides=sides, samples=samples,
        blocks=blocks, density=density, conservative=conservative, weight_decay=weight_decay, seed=seed,
    )  # fmt: skip
