"""A learner whose weights, gradients and optimizer state are spread over the processes (FSDP2, `fully_shard`).

Each process keeps the policy whole as well, for sampling and for scoring without gradient, in the precision that the
recipe names; it is brought up to date in place after every step. What is spread is kept in float32, and computes in the
policy's precision: in half precision these are the master weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from coterie.learner import Learner
from coterie.policies.base import Policy
from coterie.rollouts import Rollouts
from coterie.workers import Alone

if TYPE_CHECKING:
    from coterie.scale.processes import Processes

ELEMENTWISE = frozenset({"adamw", "sgd"})
"""Optimizers whose step of one number needs no other: those that work on a share of each matrix."""


class Sharded(Learner):
    """`fully_shard` on every block of the policy's twin and on the rest as one: a block's weights are gathered when it
    is reached, forward and backward, and its gradient is summed into the owners' shares.
    """

    def __init__(self, policy: Policy, workers: Processes, offload: bool = False) -> None:
        super().__init__(policy)
        self.workers = workers
        self.twin: Any = _twin(policy)
        kind = policy.device.type
        mesh = init_device_mesh(kind, (workers.size,))
        halves = {p.dtype for p in policy.trainable_parameters()} & {torch.bfloat16, torch.float16}
        self.half = halves.pop() if halves else None
        settings: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(self.half, torch.float32 if self.half else None, None, False),
            "offload_policy": CPUOffloadPolicy(pin_memory=kind == "cuda") if offload else OffloadPolicy(),
        }
        blocks = _blocks(self.twin.model)
        for block in blocks:
            fully_shard(block, **settings)
        self.root: Any = fully_shard(_Root(self.twin.model), **settings)
        sharded: list[Any] = [self.root, *blocks]
        for module in sharded:  # the loss is a sum already, and gloo knows no other
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def parameters(self) -> list[nn.Parameter]:
        return self.twin.trainable_parameters()

    def score(self, rollouts: Rollouts, want: Collection[str]) -> dict[str, Tensor]:
        return self.root(self.twin.score, rollouts, want)

    def idle(self, passes: int) -> int:
        return self.workers.most(passes) - passes

    def sum_gradients(self, workers: Alone) -> None:
        """They were summed as they came."""

    def gradient_norm(self, limit: float) -> float:
        return float(_full(nn.utils.clip_grad_norm_(self.parameters(), limit)))

    @torch.no_grad()
    def stepped(self) -> None:
        for mine, whole in self._pairs():
            whole.copy_(_full(mine))

    @torch.no_grad()
    def adopt(self, optimizer: Any) -> None:
        self._take([whole for _, whole in self._pairs()])

    def state(self, optimizer: Any) -> dict[str, Any]:
        inner = _map(optimizer.state_dict(), _full)
        return {"masters": [_full(p) for p in self.parameters()], "inner": inner} if self.half else inner

    @torch.no_grad()
    def restore(self, optimizer: Any, state: dict[str, Any]) -> None:
        inner = state["inner"] if self.half else state
        self._take(state["masters"] if self.half else [whole for _, whole in self._pairs()])
        kept = {}
        for number, parameter in enumerate(self.parameters()):
            if number in inner["state"]:
                kept[number] = _map(inner["state"][number], partial(_share, parameter=parameter))
        optimizer.load_state_dict({**inner, "state": kept})

    def _take(self, weights: list[Tensor]) -> None:
        for parameter, weight in zip(self.parameters(), weights, strict=True):
            parameter.copy_(_share(weight.to(parameter.dtype), parameter))

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.parameters(), self.policy.trainable_parameters(), strict=True))


class _Root(nn.Module):
    """Lets whatever the policy does with its model be the forward pass of one module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)


def _twin(policy: Any) -> Any:
    """A copy of the policy in float32 (float64 stays), that runs its model's modules and nothing written out for them.

    It samples nothing, so its engine is the policy's, which knows the tokens that are never sampled.
    """
    if hasattr(policy, "copy_frozen"):
        twin = policy.copy_frozen()
    else:
        twin = copy.copy(policy)
        twin.model = copy.deepcopy(policy.model)
    for mine, theirs in zip(twin.model.parameters(), policy.model.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
        mine.data = mine.data.to(torch.promote_types(mine.dtype, torch.float32))
    if hasattr(twin, "engine"):
        twin.engine = policy.engine
    if getattr(twin, "_shared", None) is not None:
        twin._shared.llama = None
    return twin


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that a model is a list of; of lists in lists the outer ones."""
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.extend(block for block in child if next(block.parameters(), None) is not None)
            else:
                look(child)

    look(model)
    return found


def _full(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _share(value: Tensor, parameter: Any) -> Tensor:
    """A process's share of a tensor that all have, if it is one number for each of the parameter's."""
    if value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _map(tree: Any, fn: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _map(value, fn) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map(value, fn) for value in tree)
    return fn(tree) if isinstance(tree, Tensor) else tree
