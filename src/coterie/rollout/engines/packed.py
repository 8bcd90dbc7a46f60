"""A Llama-family model's weights laid out for decoding on a CPU: few rows at a time, the same weights every step.

oneDNN reorders a matrix once and multiplies few rows by it about twice as fast as the plain layout; queries, keys and
values are one product. Adapters are added into the copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from coterie.policies import replay
from coterie.policies.llama import Layer, Linear, Llama

_LARGEST = 2**32
"""Bytes of weights above which there is no second copy."""


class PackedWeights:
    """Layers of `llama` over packed copies, made again whenever a weight has changed. None where that does not pay."""

    def __init__(self, llama: Llama) -> None:
        self.llama = llama
        self.weights = list(llama.decoder.parameters())
        self.made_of: list[int] = []
        self.made: list[Layer] | None = None

    def layers(self) -> list[Layer] | None:
        now = [w._version for w in self.weights]
        if now != self.made_of:
            self.made_of, self.made = now, self._pack() if self._pays(self.weights) else None
        return self.made

    def _pays(self, weights: list[Tensor]) -> bool:
        first = weights[0]
        fits = first.device.type == "cpu" and first.dtype in (torch.float32, torch.bfloat16)
        small = sum(w.numel() * w.element_size() for w in weights) <= _LARGEST
        return fits and small and torch.backends.mkldnn.is_available()

    @torch.no_grad()
    def _pack(self) -> list[Layer] | None:
        layers = []
        for layer, module in zip(self.llama.layers, self.llama.decoder.layers, strict=True):
            mine, mlp = module.self_attn, module.mlp
            parts = [mine.q_proj, mine.k_proj, mine.v_proj, mine.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
            found = [weight_and_bias(part) for part in parts]
            if any(f is None for f in found):
                return None
            q, k, v, o, gate, up, down = (f for f in found if f is not None)
            sizes = [q[0].shape[0], k[0].shape[0], v[0].shape[0]]
            layers.append(
                replace(
                    layer,
                    qkv=_Split(_product(q, k, v), sizes),
                    out=_product(o),
                    mlp=_Gated(_product(gate), _product(up), _product(down), mlp.act_fn),
                )
            )
        return layers


@dataclass
class _Split:
    product: Linear
    sizes: list[int]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.product(x).split(self.sizes, -1)


@dataclass
class _Gated:
    gate: Linear
    up: Linear
    down: Linear
    act: Linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)).mul_(self.up(x)))


def _product(*parts: tuple[Tensor, Tensor | None]) -> Linear:
    """x -> x times the matrices, side by side; what each gave is kept where somebody keeps it."""
    weight = torch.cat([w for w, _ in parts])
    bias = None if parts[0][1] is None else torch.cat([b for _, b in parts if b is not None])
    multiply, packed = torch.ops.mkldnn._linear_pointwise, torch.ops.mkldnn._reorder_linear_weight(weight, 32)
    matrices, sizes = [w for w, _ in parts], [len(w) for w, _ in parts]

    def times(x: Tensor) -> Tensor:
        out = multiply(x, packed, bias, "none", [], "")
        if (kept := replay.current()) is not None:
            for matrix, part in zip(matrices, out.split(sizes, -1), strict=True):
                kept.keep(matrix, part)
        return out

    return times


def weight_and_bias(module: Any) -> tuple[Tensor, Tensor | None] | None:
    """What a linear layer multiplies by, adapters included; None for layers of another kind."""
    if type(module) is torch.nn.Linear:
        return module.weight, module.bias
    base = getattr(module, "base_layer", None)
    if type(base) is not torch.nn.Linear or not hasattr(module, "get_delta_weight") or module.merged:
        return None
    weight = base.weight
    for name in [] if module.disable_adapters else module.active_adapters:
        if name in module.lora_A:
            weight = weight + module.get_delta_weight(name).to(weight.dtype)
    return weight, base.bias
