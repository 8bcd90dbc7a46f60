"""Random directions that are never stored: a seed replays them, one parameter after the other (arXiv:2305.17333)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def directions(parameters: Iterable[Tensor], seed: int, density: float = 1.0) -> Iterator[Tensor]:
    """A standard normal tensor like each parameter, the same for the same seed, order and devices.

    `density` is the chance of each entry to stay; the others are 0.
    """
    generators: dict[torch.device, torch.Generator] = {}
    for p in parameters:
        if p.device not in generators:
            generators[p.device] = torch.Generator(p.device).manual_seed(seed)
        generator = generators[p.device]
        z = torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
        if density < 1.0:
            z.mul_(torch.rand(p.shape, generator=generator, device=p.device) < density)
        yield z


def require(name: str, value: float, fine: bool) -> None:
    """The error that torch's own optimizers raise for a setting out of its range."""
    if not fine:
        raise ValueError(f"Invalid {name}: {value}")
