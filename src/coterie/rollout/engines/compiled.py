"""A Llama-family model's layers for decoding, compiled by torch: what stands before attention, and what stands after.

Both are functions of tensors, the weights among them. So each is compiled once, for any number of rows, and serves
every layer after every update. Attention stays as it is: what it attends to changes in number from step to step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from coterie.errors import PolicyError
from coterie.policies.llama import Layer, Llama, Norm
from coterie.policies.shared_prefix import SharedPrefix
from coterie.rollout.engines.packed import Affine, weight_and_bias

_WHERE = "model.compile_decode"
_HINT = "leave model.compile_decode out"

Scaled = tuple[Tensor, Tensor]
"""A norm's weight, and its epsilon as a tensor: a number might be compiled into each layer's own graph."""


@torch.no_grad()
def compilable(shared: SharedPrefix | None) -> Llama:
    """The layers to compile. Raises PolicyError where they cannot be."""
    if shared is None or shared.llama is None:
        raise PolicyError("only models built like Llama are decoded with compiled layers", where=_WHERE, hint=_HINT)
    if problem := _no_compiler(shared.split.model.device):
        raise PolicyError(problem, where=_WHERE, hint=f"install it, or {_HINT}")
    for module in shared.llama.decoder.layers:
        _weights(module)
    return shared.llama


class CompiledLayers:
    """Layers of `llama` that run compiled functions, over its own weights; where adapters act, over a copy with them
    added, made again whenever a weight has changed."""

    def __init__(self, llama: Llama) -> None:
        self.llama = llama
        self.weights = list(llama.decoder.parameters())
        self.made_of: list[int] = []
        self.made: list[Layer] | None = None
        self.enter, self.leave = _compiled(_enter), _compiled(_leave)

    def layers(self) -> list[Layer] | None:
        now = [w._version for w in self.weights]
        if now != self.made_of:
            self.made_of, self.made = now, self._make()
        return self.made

    @torch.no_grad()
    def _make(self) -> list[Layer]:
        layers: list[Layer] = []
        for layer, module in zip(self.llama.layers, self.llama.decoder.layers, strict=True):
            found = _weights(module)
            qkv = [(w.detach().unflatten(0, (-1, layer.head)), b) for w, b in found[:3]]
            entering: tuple[Any, ...] = (_scaled(layer.before), *qkv, _scaled(layer.q_norm), _scaled(layer.k_norm))
            leaving: tuple[Any, ...] = (_scaled(layer.after), *((w.detach(), b) for w, b in found[3:]))
            for part in (*entering, *leaving):
                for tensor in part or ():
                    if tensor is not None:
                        torch._dynamo.mark_static(tensor)  # only the number of rows is left open
            own = {f.name: getattr(layer, f.name) for f in fields(layer)}
            layers.append(_CompiledLayer(**own, entering=entering, leaving=leaving, functions=(self.enter, self.leave)))
        return layers


@dataclass
class _CompiledLayer(Layer):
    entering: tuple[Any, ...]
    leaving: tuple[Any, ...]
    functions: tuple[Callable[..., Any], Callable[..., Any]]

    def enter(self, x: Tensor, plus: Tensor | None, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if len(x) == 1:  # torch would compile a graph of its own for one row
            return super().enter(x, plus, cos, sin)
        assert plus is None
        return x, *self.functions[0](*_any_rows(x, cos, sin), *self.entering)

    def leave(self, x: Tensor, found: Tensor) -> tuple[Tensor, Tensor | None]:
        if len(x) == 1:
            return super().leave(x, found)
        return self.functions[1](*_any_rows(x, found), *self.leaving), None


def _any_rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tells torch that their number of rows is open, also where it happens to be the model's width."""
    for x in tensors:
        torch._dynamo.maybe_mark_dynamic(x, 0)
    return tensors


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    run = torch.compile(function, dynamic=True, fullgraph=True)

    def guarded(*args: Any) -> Any:
        try:
            return run(*args)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise PolicyError(f"torch cannot compile the layers: {first}", where=_WHERE, hint=_HINT) from error

    return guarded


def _enter(
    x: Tensor, cos: Tensor, sin: Tensor, before: Scaled, q: Affine, k: Affine, v: Affine,
    q_norm: Scaled | None, k_norm: Scaled | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x = _normed(x, *before)
    queries, keys, values = (linear(x, w.flatten(0, 1), b).unflatten(-1, w.shape[:2]) for w, b in (q, k, v))
    if q_norm is not None and k_norm is not None:
        queries, keys = _normed(queries, *q_norm), _normed(keys, *k_norm)
    return _rotated(queries, cos, sin), _rotated(keys, cos, sin), values


def _leave(x: Tensor, found: Tensor, after: Scaled, o: Affine, gate: Affine, up: Affine, down: Affine) -> Tensor:
    x = x + linear(found, *o)
    inner = _normed(x, *after)
    return x + linear(silu(linear(inner, *gate)) * linear(inner, *up), *down)


def _normed(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    wide = x.to(eps.dtype)
    return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight).to(x.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`sin` is signed, as `Llama` has it."""
    return x * cos + torch.cat(x.chunk(2, -1)[::-1], -1) * sin


def _scaled(norm: Norm | None) -> Scaled | None:
    if norm is None:
        return None
    dtype = torch.float64 if norm.weight.dtype == torch.float64 else torch.float32
    return norm.weight.detach(), torch.tensor([norm.eps], dtype=dtype, device=norm.weight.device)


def _weights(module: Any) -> list[Affine]:
    """Of queries, keys, values, output, gate, up and down. Raises PolicyError for layers of another kind."""
    mine, mlp = module.self_attn, module.mlp
    parts = [mine.q_proj, mine.k_proj, mine.v_proj, mine.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    found = [f for f in map(weight_and_bias, parts) if f is not None]
    if len(found) < len(parts) or type(mlp.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
        problem = "only linear layers, plain or with LoRA, and an MLP gated by SiLU are compiled"
        raise PolicyError(problem, where=_WHERE, hint=_HINT)
    return found


def _no_compiler(device: torch.device) -> str | None:
    """What torch lacks to compile for a device, None where nothing."""
    if device.type != "cpu":
        from torch.utils._triton import has_triton

        return None if has_triton() else "torch compiles for a GPU with Triton, which is not here"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch compiles for a CPU with a C++ compiler, and finds none"
    return None
