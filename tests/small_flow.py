"""A small flow policy of random weights in float64, for tests of what samples or scores with one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from coterie.policies.flow.policy import FlowPolicy
from coterie.policies.flow.spec import FlowShape, FlowSpec


def small_flow(seed: int = 1, classes: Sequence[str] = ("a", "b"), *, told: bool = False) -> FlowPolicy:
    """Of samples of three numbers. A new model is near 0 everywhere, so its weights are drawn anew."""
    spec = FlowSpec(flow=FlowShape(layers=1, width=16, heads=2), dtype="float64", device="cpu")
    policy = FlowPolicy.load(spec, (3,), classes, told=told)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3)
    return policy
