"""The reference policy: who `logp_ref` comes from. Frozen, an exponential moving average, or a periodic copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor

from coterie.policies.base import Gaussian, Policy
from coterie.rollouts import Rollouts

Update = Literal["frozen", "ema", "periodic"]


class Reference:
    """Scores rollouts under a policy that stands still or follows slowly; never with gradient.

    `frozen` stays at the policy of construction. `ema` moves after every step: ref <- decay * ref + (1 - decay) *
    policy. `periodic` copies the policy every `every` steps, and goes on past it by `momentum` times the way that the
    policy took since the copy before (Nesterov's extrapolation, in parameters; arXiv:2410.06293). It holds one float
    copy of the trainable parameters, two with momentum, and swaps them into the policy's own model to score, so no
    second model is loaded; with adapters that copy is small, and for fresh adapters under `frozen` there is none: the
    base with its adapters off is the reference.
    """

    def __init__(
        self, policy: Policy, update: Update = "frozen", decay: float = 0.99, every: int = 50, momentum: float = 0.0
    ) -> None:
        self.policy, self.update, self.decay, self.every, self.momentum = policy, update, decay, every, momentum
        bare = update == "frozen" and policy.has_adapters and _adapters_are_zero(policy)
        self._weights = None if bare else {n: p.clone() for n, p in policy.state_dict().items()}
        self._before = {n: p.clone() for n, p in policy.state_dict().items()} if momentum else None
        """The policy as it was when it was copied last."""

    @torch.no_grad()
    def score(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """{"logp_ref": [B,T]} under the sampling spec of the rollouts, 0 where masked."""
        with self._in_place():
            return {"logp_ref": self.policy.score(rollouts, {"logp"})["logp"]}

    @torch.no_grad()
    def means(self, rollouts: Rollouts) -> Tensor:
        """Means of Gaussian decisions, for `kl_ref`. [B,T,...]"""
        with self._in_place():
            return cast(Gaussian, self.policy).means(rollouts)

    @torch.no_grad()
    def fine_velocities(self, rollouts: Rollouts, substeps: int) -> Tensor:
        """Velocities over whole steps, walked in `substeps`, for `fine_gap`. [B,T,...]"""
        with self._in_place():
            return cast(Gaussian, self.policy).fine_velocities(rollouts, substeps)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Follow the policy. `step` counts optimisation steps done, from 1."""
        if self._weights is None or self.update == "frozen":
            return
        if self.update == "periodic" and step % self.every:
            return
        rate = 1.0 if self.update == "periodic" else 1.0 - self.decay
        for name, p in self.policy.state_dict().items():
            self._weights[name].lerp_(p, rate)
            if self._before is not None:
                self._weights[name].add_(p - self._before[name], alpha=self.momentum)
                self._before[name].copy_(p)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights, "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weights, self._before = (
            None if kept is None else {n: w.to(self.policy.device).clone() for n, w in kept.items()}
            for kept in (state["weights"], state["before"])
        )

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        if self._weights is None:
            with self.policy.model.disable_adapter():
                yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Exchange storages with the policy: nothing is copied, and the optimiser's parameters stay its own."""
        assert self._weights is not None
        for name, p in self.policy.model.named_parameters():
            if name in self._weights:
                p.data, self._weights[name] = self._weights[name], p.data


def _adapters_are_zero(policy: Policy) -> bool:
    """Whether switching the adapters off gives the policy back: LoRA starts with B = 0, and nothing else is trained."""
    state = policy.state_dict()
    ups = [p for name, p in state.items() if "lora_B" in name]
    return bool(ups) and all(not p.any() for p in ups) and all("lora_" in name for name in state)
