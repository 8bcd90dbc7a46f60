"""How a pure piece reports what it did: `record("clip/fraction", clipped)`. Outside a loop it does nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor


class Collector:
    """Weighted sums, so that a mean over an update is the same however the update is cut into micro-batches."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self.count: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self.lows: dict[str, float] = {}
        self.mask: Tensor | None = None

    def peak(self, name: str, value: float) -> None:
        """Keep the largest value of an update."""
        self.peaks[name] = max(value, self.peaks.get(name, value))

    def low(self, name: str, value: float) -> None:
        """Keep the smallest value of an update."""
        self.lows[name] = min(value, self.lows.get(name, value))

    def add(self, name: str, value: Tensor | float, mask: Tensor | None) -> None:
        if not isinstance(value, Tensor):
            total, count = float(value), 1.0
        else:
            value = value.detach().double()
            over = mask if mask is not None else self.mask
            if over is not None and value.dim() == 1 and over.dim() == 2:
                over = over.any(-1)
            if over is None or over.shape != value.shape:
                over = torch.ones_like(value, dtype=torch.bool)
            total, count = float(value[over].sum()), float(over.sum())
        self.total[name] = self.total.get(name, 0.0) + total
        self.count[name] = self.count.get(name, 0.0) + count

    def means(self) -> dict[str, float]:
        """Means over the update's decisions, and its largest and smallest values."""
        return (
            {name: self.total[name] / self.count[name] for name in self.total if self.count[name]}
            | self.peaks
            | self.lows
        )


_active: ContextVar[Collector | None] = ContextVar("coterie_metrics", default=None)


def record(name: str, value: Tensor | float, mask: Tensor | None = None) -> None:
    """Report a metric from inside a piece. [B,T] and [B] values are averaged over `mask` (default: the loss mask in
    the update, everything before it).
    """
    collector = _active.get()
    if collector is not None:
        collector.add(name, value, mask)


def record_range(name: str, value: Tensor, mask: Tensor) -> None:
    """Report mean, smallest and largest of a [B,T] value over `mask`, as NAME_mean, NAME_min and NAME_max."""
    collector = _active.get()
    if collector is not None and bool(mask.any()):
        collector.add(f"{name}_mean", value, mask)
        collector.low(f"{name}_min", float(value[mask].min()))
        collector.peak(f"{name}_max", float(value[mask].max()))


def merge(collector: Collector) -> None:
    """Add what one collector gathered to the one that is active."""
    active = _active.get()
    if active is not None:
        for name, total in collector.total.items():
            active.total[name] = active.total.get(name, 0.0) + total
            active.count[name] = active.count.get(name, 0.0) + collector.count[name]
        for name, value in collector.peaks.items():
            active.peak(name, value)
        for name, value in collector.lows.items():
            active.low(name, value)


@contextmanager
def collect(into: Collector, mask: Tensor | None = None) -> Iterator[Collector]:
    """Gather what pieces record; `mask` [B,T] bool is the loss mask their values are averaged over."""
    into.mask = mask
    token = _active.set(into)
    try:
        yield into
    finally:
        _active.reset(token)
