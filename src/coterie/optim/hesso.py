"""HESSO: train and prune in one go, whole rows at a time (arXiv:2409.09085)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.optim.replay import require
from coterie.pieces import optimizer


class HESSO(torch.optim.AdamW):
    """AdamW that sets a share `sparsity` of all rows to 0 on the way.

    After `start` steps come `periods` of `period` steps. At the beginning of each, rows are scored and the next lowest
    of them become redundant; over the period they are shrunk evenly to 0 while they still learn, then stay 0. A row is
    one index of the first dimension of a matrix or a larger tensor of at most `max_rows` rows. In a parameter group
    with `"tied": True` all tensors share their rows, and are pruned together. One row of each is always kept.

    The score of a row x with gradient g is the mean of five, each over its norm over all rows: |x|, its root mean
    square, 1 - cos(x, g) (a row whose descent leads to 0 is not needed), |x.g| and (x.g)^2 / 2.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, *, sparsity: float = 0.5, start: int = 0, period: int = 100, periods: int = 1,
        max_rows: int = 10_000,
    ) -> None:  # fmt: skip
        require("sparsity", sparsity, 0 <= sparsity < 1)
        require("start", start, start >= 0)
        require("period", period, period >= 1)
        require("periods", periods, periods >= 1)
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        mine = dict(sparsity=sparsity, start=start, period=period, periods=periods, max_rows=max_rows, tied=False)
        self.defaults.update(mine)
        for group in self.param_groups:
            for name, value in mine.items():
                group.setdefault(name, value)
        self.param_groups[0].setdefault("steps", 0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for kept in self.state.values():
            for name in ("redundant", "pruned"):
                if name in kept:
                    kept[name] = kept[name].bool()  # loading casts to the parameter's dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        head = self.param_groups[0]
        now = head["steps"] - head["start"]
        number, inside = divmod(now, head["period"])
        pruning = 0 <= now and number < head["periods"]
        units = list(self._units())
        chosen = self._choose(units, (number + 1) / head["periods"]) if pruning and inside == 0 else None
        super().step()
        if chosen is not None:
            for unit, redundant in zip(units, chosen, strict=True):
                for p in unit:
                    self.state[p].setdefault("pruned", torch.zeros_like(redundant))
                    self.state[p]["redundant"] = redundant
        zero = rows = 0
        for unit in units:
            for p in unit:
                kept = self.state[p]
                if "redundant" in kept:
                    left = head["period"] - inside if pruning else 1
                    p[kept["redundant"]] *= (left - 1) / left
                    if pruning and left == 1:
                        kept["pruned"] |= kept["redundant"]
                    p[kept["pruned"]] = 0.0
            zero += int(self.state[unit[0]]["pruned"].sum()) if "pruned" in self.state[unit[0]] else 0
            rows += len(unit[0])
        record("hesso/pruned_share", zero / max(rows, 1))
        head["steps"] += 1
        return loss

    def _units(self) -> Iterable[list[Tensor]]:
        """Tensors that share their rows."""
        for group in self.param_groups:
            fit = [p for p in group["params"] if p.dim() and len(p) <= group["max_rows"] and p.grad is not None]
            if group["tied"] and fit:
                yield fit
            elif not group["tied"]:
                yield from ([p] for p in fit if p.dim() > 1)

    def _choose(self, units: list[list[Tensor]], due: float) -> list[Tensor]:
        """The rows that are to be 0 when a share `due` of the pruning is done, and are not yet. A bool a row."""
        if not units:
            return []
        parts = [row_scores(unit) for unit in units]
        scores = torch.cat(parts, 1)
        overall = (scores / (scores.norm(dim=1, keepdim=True) + 1e-8)).mean(0)
        gone = torch.cat(
            [self.state[u[0]].get("pruned", torch.zeros(len(u[0]), dtype=torch.bool)).cpu() for u in units]
        )
        overall[gone] = -torch.inf
        sizes = [len(unit[0]) for unit in units]
        for part in overall.split(sizes):  # a view: the best row of each is never taken
            part[part.argmax()] = torch.inf
        count = min(round(self.param_groups[0]["sparsity"] * due * len(overall)), len(overall) - len(units))
        taken = torch.zeros_like(gone)
        taken[overall.argsort(stable=True)[:count]] = True
        return [t.to(unit[0].device) for t, unit in zip((taken & ~gone).split(sizes), units, strict=True)]


def row_scores(unit: list[Tensor]) -> Tensor:
    """The five scores of the rows that some tensors share. [5,rows], on the CPU"""
    x = torch.cat([p.flatten(1) if p.dim() > 1 else p.unsqueeze(1) for p in unit], 1)
    g = torch.cat([p.grad.flatten(1) if p.dim() > 1 else p.grad.unsqueeze(1) for p in unit], 1)  # type: ignore[union-attr]
    size, slope = x.norm(dim=1), (x * g).sum(1)
    cosine = slope / ((size + 1e-8) * (g.norm(dim=1) + 1e-8))
    return torch.stack([size, size / x.shape[1] ** 0.5, 1 - cosine, slope.abs(), slope.square() / 2]).double().cpu()


@optimizer(paper="arXiv:2409.09085")
def hesso(
    parameters: Iterable[torch.nn.Parameter], *, lr: float = 1e-6, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-8, weight_decay: float = 0.0, sparsity: float = 0.5, start: int = 0, period: int = 100,
    periods: int = 1, max_rows: int = 10_000,
) -> torch.optim.Optimizer:  # fmt: skip
    """AdamW that prunes whole rows of matrices while it trains: they are shrunk to 0 over a period, then stay 0.

    sparsity: share of all rows that are 0 in the end. start: steps before pruning. period: steps over which rows are
    shrunk. periods: in how many rounds they are chosen. max_rows: tensors with more rows (embeddings, heads) are left
    whole.
    """
    return HESSO(
        parameters, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, sparsity=sparsity, start=start,
        period=period, periods=periods, max_rows=max_rows,
    )  # fmt: skip
