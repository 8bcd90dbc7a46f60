"""Sampling from a copy of the weights in another precision: faster to decode, and not quite the policy that learns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from coterie.rollout.engines.base import Generation, Request, Until
from coterie.rollout.engines.local import LocalEngine
from coterie.rollout.engines.memory import Memory


class CopiedEngine:
    """A local engine over a copy of `model` in `dtype`, brought up to date before it samples if a weight has changed.

    The copy is made when it is first sampled from. What it captures are its own log-probs: `exact` is False.
    """

    exact = False

    def __init__(self, model: Any, dtype: torch.dtype, make: Callable[[Any], LocalEngine], context: int | None) -> None:
        self.model, self.dtype, self.make, self.context = model, dtype, make, context
        self.forbid: tuple[int, ...] = ()
        self._engine: LocalEngine | None = None
        self._copied_of: list[int] = []

    def generate(self, requests: Sequence[Request], *, entropy: bool = False, until: Until | None = None) -> Generation:
        """As LocalEngine does."""
        engine = self._up_to_date()
        engine.forbid = self.forbid
        return engine.generate(requests, entropy=entropy, until=until)

    def remember(self) -> Memory:
        """As LocalEngine does. The weights must not change while it is open."""
        return self._up_to_date().remember()

    @torch.no_grad()
    def _up_to_date(self) -> LocalEngine:
        trained = list(self.model.parameters())
        now = [p._version for p in trained]
        if self._engine is None:
            twin = copy.deepcopy(self.model).requires_grad_(False)
            for p in twin.parameters():  # buffers (RoPE frequencies) keep their precision
                p.grad, p.data = None, p.data.to(self.dtype)
            self._engine = self.make(twin)
        elif now != self._copied_of:
            for mine, theirs in zip(self._engine.model.parameters(), trained, strict=True):
                mine.copy_(theirs)
        self._copied_of = now
        return self._engine
