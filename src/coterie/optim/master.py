"""Master weights: an optimizer steps float32 copies of half-precision parameters (arXiv:1710.03740)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class MasterWeights:
    """Any optimizer on float32 copies. In bfloat16 alone, an update under 1/256 of a weight is rounded away.

    Has the parts of torch.optim.Optimizer that the loop uses; the copies are in its state_dict.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], make: Callable[[list[torch.Tensor]], torch.optim.Optimizer]
    ) -> None:
        self.parameters = list(parameters)
        self.masters = [p.detach().float().clone() for p in self.parameters]
        self.inner = make(self.masters)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @property
    def asks(self) -> str | None:
        """Whether `step` takes a closure, and what it must do (see `coterie.optim`)."""
        return getattr(self.inner, "asks", None)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is None:
            self._hand_up()
            loss = self.inner.step()
        else:
            loss = self.inner.step(lambda: self._evaluate(closure))
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = None
            parameter.copy_(master)
        return loss

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        """The loss, and the gradient if it leaves one, where the masters have been moved to."""
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                parameter.copy_(master)
        loss = closure()
        self._hand_up()
        return loss

    def _hand_up(self) -> None:
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()

    @torch.no_grad()
    def adopt(self) -> None:
        """Begin from the parameters as they are now: something else has moved them."""
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.copy_(parameter)

    def state_dict(self) -> dict[str, Any]:
        return {"masters": self.masters, "inner": self.inner.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for master, saved in zip(self.masters, state["masters"], strict=True):
            master.copy_(saved)
        self.inner.load_state_dict(state["inner"])


def optimize(
    parameters: list[torch.nn.Parameter], make: Callable[[list[Any]], torch.optim.Optimizer]
) -> torch.optim.Optimizer | MasterWeights:
    """The optimizer that `make` builds, on master weights where parameters are in half precision."""
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in parameters):
        return MasterWeights(parameters, make)
    return make(parameters)
