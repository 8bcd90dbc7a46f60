"""COSMOS: SOAP in the leading eigenspace of a matrix's gradients, Muon in the rest (arXiv:2502.17410)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from coterie.optim.replay import require
from coterie.pieces import optimizer

_MATRIX = ("momentum", "exp_avg_sq", "basis", "spectrum")
"""State of a matrix: [m,n], [m,rank], [n,rank], [rank,rank]."""


class COSMOS(torch.optim.Optimizer):
    """A matrix [m,n] moves by lr_ratio lr sqrt(mn) d / |d|, where d is Adam in the leading `rank` right eigenvectors of
    its gradients' second moment, plus `gamma` times the orthogonalised momentum in the rest of the space.

    Everything else, and matrices of more than `max_rows` rows (embeddings, heads), is stepped by AdamW. The size of a
    step does not depend on the gradient's, so clipping its norm does nothing: lower lr over the run. `rank` 0 is Muon
    of normalised size; a rank of the smaller side or more is Adam in the eigenbasis alone, as long as all gradients lie
    in it.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.95, 0.95), eps: float = 1e-8,
        weight_decay: float = 0.0, *, rank: int = 64, gamma: float = 0.2, lr_ratio: float = 0.1, max_rows: int = 10_000,
    ) -> None:  # fmt: skip
        require("learning rate", lr, lr >= 0)
        require("beta", betas[0], 0 <= betas[0] < 1)
        require("beta", betas[1], 0 <= betas[1] < 1)
        require("eps", eps, eps > 0)
        require("weight_decay", weight_decay, weight_decay >= 0)
        require("rank", rank, rank >= 0)
        require("gamma", gamma, gamma >= 0)
        super().__init__(params, dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, rank=rank, gamma=gamma, lr_ratio=lr_ratio,
            max_rows=max_rows,
        ))  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                self.state[p]["step"] = self.state[p].get("step", 0) + 1
                move = _matrix if p.dim() == 2 and len(p) <= group["max_rows"] else _adam
                # decompositions exist in single and double precision alone; what is kept is kept as the weights are
                by = move(group, self.state[p], p.grad.to(torch.promote_types(p.dtype, torch.float32)))
                for name, value in self.state[p].items():
                    if name != "step":
                        self.state[p][name] = value.to(p.dtype)
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(by.to(p.dtype), alpha=-group["lr"])
        return loss


def _matrix(group: dict[str, Any], kept: dict[str, Any], g: Tensor) -> Tensor:
    """The step of a matrix, over lr. [m,n]"""
    (beta1, beta2), eps, t = group["betas"], group["eps"], kept["step"]
    rank, size = min(group["rank"], *g.shape), g.numel() ** 0.5
    if t == 1:
        basis = old = torch.linalg.eigh(g.T @ g)[1].flip(1)[:, :rank].contiguous()
        momentum, v, spectrum = torch.zeros_like(g), g.new_zeros(len(g), rank), g.new_zeros(rank, rank)
    else:  # one power iteration of the second moment, which is known in the old basis alone
        momentum, v, old, spectrum = (kept[name].to(g.dtype) for name in _MATRIX)
        basis = torch.linalg.qr(beta2 * (old @ spectrum) + (1 - beta2) * (g.T @ (g @ old)))[0]
    turn, seen = old.T @ basis, g @ basis
    spectrum = beta2 * (turn.T @ spectrum @ turn) + (1 - beta2) * (seen.T @ seen)
    momentum = beta1 * momentum + g
    v = beta2 * v + (1 - beta2) * seen.square()
    u = (g + beta1 * momentum) / (1 + beta1 * (1 - beta1**t) / (1 - beta1))
    inside = u @ basis
    lead = (inside / ((v / (1 - beta2**t)).sqrt() + eps)) @ basis.T
    rest = u - inside @ basis.T
    rest = rest * (rest.norm() > 100 * torch.finfo(g.dtype).eps * u.norm())  # rounding must not be blown up
    rest = orthogonalise(rest)
    d = lead + group["gamma"] * size * rest / (rest.norm() + eps)
    for name, value in zip(_MATRIX, (momentum, v, basis, spectrum), strict=True):
        kept[name] = value
    return group["lr_ratio"] * size * d / (d.norm() + eps)


def _adam(group: dict[str, Any], kept: dict[str, Any], g: Tensor) -> Tensor:
    """The step of anything else, over lr."""
    (beta1, beta2), t = group["betas"], kept["step"]
    old, old_sq = (kept[name].to(g.dtype) if t > 1 else torch.zeros_like(g) for name in ("exp_avg", "exp_avg_sq"))
    kept["exp_avg"] = old.lerp(g, 1 - beta1)
    kept["exp_avg_sq"] = old_sq * beta2 + (1 - beta2) * g.square()
    denominator = (kept["exp_avg_sq"] / (1 - beta2**t)).sqrt_().add_(group["eps"])
    return kept["exp_avg"] / denominator / (1 - beta1**t)


def orthogonalise(x: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of x = U S V^T, by Muon's quintic Newton-Schulz iteration. [m,n] -> [m,n]"""
    tall = x.shape[0] > x.shape[1]
    x = x / (x.norm() + 1e-7)
    x = x.T if tall else x
    for _ in range(steps):
        a = x @ x.T
        b = a @ x
        x = 3.4445 * x - 4.7750 * b + 2.0315 * (a @ b)
    return x.T if tall else x


@optimizer(paper="arXiv:2502.17410")
def cosmos(
    parameters: Iterable[torch.nn.Parameter], *, lr: float = 1e-5, beta1: float = 0.95, beta2: float = 0.95,
    eps: float = 1e-8, weight_decay: float = 0.0, rank: int = 64, gamma: float = 0.2, lr_ratio: float = 0.1,
    max_rows: int = 10_000,
) -> torch.optim.Optimizer:  # fmt: skip
    """SOAP in the leading eigenspace of each matrix's gradients, Muon in the rest; AdamW for all that is no matrix.

    rank: dimension of the leading space, cut to the smaller side of the matrix. gamma: weight of the rest. lr_ratio:
    length of a matrix's step in units of lr times sqrt(entries). max_rows: longer matrices (embeddings, heads) are
    AdamW's.
    """
    return COSMOS(
        parameters, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, rank=rank, gamma=gamma,
        lr_ratio=lr_ratio, max_rows=max_rows,
    )  # fmt: skip
