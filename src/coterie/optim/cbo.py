"""Consensus-based optimisation: particles that drift to their best and look around it (arXiv:2306.09778)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from coterie.metrics import record
from coterie.optim.replay import directions, require
from coterie.pieces import optimizer
from coterie.streams import stream


class CBO(torch.optim.Optimizer):
    """`particles` copies x_i of the weights; their consensus is c = sum_i x_i exp(-alpha L(x_i)) / sum exp(-alpha L).

    Each drifts by lr (c - x_i) and is kicked by sigma sqrt(lr) |x_i - c| xi, entry by entry with `noise` "anisotropic"
    (|.| of the entry) or with the whole distance, "isotropic". The weights are left at c. The first particle starts at
    the weights, the others `spread` times a standard normal around them. Memory: `particles` copies of the weights;
    `step` calls its closure once for each.
    """

    asks: Literal["loss"] = "loss"

    def __init__(
        self, params: Iterable[Any], lr: float = 0.1, *, particles: int = 8, alpha: float = 30.0, sigma: float = 1.0,
        spread: float = 0.01, noise: str = "anisotropic", weight_decay: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        require("learning rate (the share of the way to the consensus)", lr, 0 <= lr <= 1)
        require("particles", particles, particles >= 2)
        require("alpha", alpha, alpha >= 0)
        require("sigma", sigma, sigma >= 0)
        require("spread", spread, spread > 0)
        require("weight_decay", weight_decay, weight_decay >= 0)
        if noise not in ("anisotropic", "isotropic"):
            raise ValueError(f"Invalid noise: {noise}")
        super().__init__(params, dict(
            lr=lr, particles=particles, alpha=alpha, sigma=sigma, spread=spread, noise=noise,
            weight_decay=weight_decay, seed=seed,
        ))  # fmt: skip
        self.param_groups[0].setdefault("steps", 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> float:  # type: ignore[override]
        head = self.param_groups[0]
        owned = [(group, p) for group in self.param_groups for p in group["params"]]
        parameters = [p for _, p in owned]
        if "particles" not in self.state[parameters[0]]:
            self._scatter(owned)
        count, held = len(self.state[parameters[0]]["particles"]), [p.clone() for p in parameters]
        losses = []
        try:
            for i in range(count):
                for p in parameters:
                    p.copy_(self.state[p]["particles"][i])
                losses.append(float(closure()))
        finally:
            for p, before in zip(parameters, held, strict=True):
                p.copy_(before)
        share = np.exp(-head["alpha"] * (np.array(losses) - min(losses)))
        share /= share.sum()
        record("cbo/effective_particles", 1 / float((share**2).sum()))
        gaps: list[Tensor] = []
        for p in parameters:
            particles = self.state[p]["particles"]
            weight = torch.as_tensor(share, dtype=p.dtype, device=p.device).view(-1, *[1] * p.dim())
            p.copy_((weight * particles).sum(0))
            gaps.append(particles - p)
        distance = sum(gap.square().flatten(1).sum(1) for gap in gaps).sqrt()  # type: ignore[union-attr]
        record("cbo/distance", float(distance.mean()))
        for i in range(count):
            seed = stream(head["seed"], "kick", head["steps"], i)
            for (group, p), gap, xi in zip(owned, gaps, directions(parameters, seed), strict=True):
                reach = gap[i].abs() if group["noise"] == "anisotropic" else distance[i].to(p.device)
                moved = self.state[p]["particles"][i]
                moved.sub_(gap[i], alpha=group["lr"]).add_(reach * xi, alpha=group["sigma"] * group["lr"] ** 0.5)
                moved.mul_(1 - group["lr"] * group["weight_decay"])
        head["steps"] += 1
        return losses[0]

    def _scatter(self, owned: list[tuple[dict[str, Any], Tensor]]) -> None:
        head, parameters = self.param_groups[0], [p for _, p in owned]
        for p in parameters:
            self.state[p]["particles"] = p.unsqueeze(0).repeat(head["particles"], *[1] * p.dim())
        for i in range(1, head["particles"]):
            shifts = directions(parameters, stream(head["seed"], "particle", i))
            for (group, p), xi in zip(owned, shifts, strict=True):
                self.state[p]["particles"][i].add_(xi, alpha=group["spread"])


@optimizer(paper="arXiv:2306.09778")
def cbo(
    parameters: Iterable[torch.nn.Parameter], *, lr: float = 0.1, particles: int = 8, alpha: float = 30.0,
    sigma: float = 1.0, spread: float = 0.01, noise: Literal["anisotropic", "isotropic"] = "anisotropic",
    weight_decay: float = 0.0, seed: int = 0,
) -> torch.optim.Optimizer:  # fmt: skip
    """Particles that drift towards their loss-weighted mean and are kicked in proportion to their distance from it.

    For small models: it holds `particles` copies of the weights and evaluates the loss at each. lr: share of the way to
    the consensus a step. alpha: how much the consensus is the best particle's, 0 is the mean. sigma: strength of the
    kicks. spread: distance at which particles start. noise: kicks by the distance of each entry, or of the whole. seed:
    of particles and kicks.
    """
    return CBO(
        parameters, lr, particles=particles, alpha=alpha, sigma=sigma, spread=spread, noise=noise,
        weight_decay=weight_decay, seed=seed,
    )  # fmt: skip
