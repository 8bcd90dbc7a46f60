"""A Llama-family model's weights laid out for decoding on a CPU: few rows at a time, the same weights every step.

oneDNN reorders a matrix once and multiplies few rows by it about twice as fast as the plain layout; small ones go to
MKL on Intel's processors. Queries, keys and values are one product. Adapters are added into the copy, and in float32
what is constant about norms and scores too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from coterie.policies import replay, row_counts
from coterie.policies.llama import Layer, Linear, Llama, Norm, rotate

Affine = tuple[Tensor, Tensor | None]
"""A matrix, and a bias where there is one. (Compiled functions have those of queries, keys and values as [h,D,H].)"""
_SMALL = 2**19
"""Elements of a float32 matrix up to which MKL is faster, on processors that it is made for."""
_LARGEST = 2**32
"""Bytes of weights above which there is no second copy."""


class PackedWeights:
    """Layers of `llama` over packed copies, made again whenever a weight has changed. None where that does not pay."""

    def __init__(self, llama: Llama) -> None:
        self.llama = llama
        self.weights = list(llama.decoder.parameters())
        self.made_of: list[tuple[int, int]] = []
        self.made: list[Layer] | None = None

    def layers(self) -> list[Layer] | None:
        now = [(w._version, w.data_ptr()) for w in self.weights]  # of another type they are elsewhere
        if now != self.made_of:
            self.made_of, self.made = now, self._pack() if self._pays(self.weights) else None
        return self.made

    def _pays(self, weights: list[Tensor]) -> bool:
        first = weights[0]
        small = sum(w.numel() * w.element_size() for w in weights) <= _LARGEST
        return first.device.type == "cpu" and small and torch.backends.mkldnn.is_available() and _packs(first.dtype)

    @torch.no_grad()
    def _pack(self) -> list[Layer] | None:
        layers: list[Layer] = []
        for layer, module in zip(self.llama.layers, self.llama.decoder.layers, strict=True):
            mine, mlp = module.self_attn, module.mlp
            parts = [mine.q_proj, mine.k_proj, mine.v_proj, mine.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
            found = [weight_and_bias(part) for part in parts]
            if any(f is None for f in found):
                return None
            q, k, v, o, gate, up, down = (f for f in found if f is not None)
            act = mlp.act_fn
            if gates_by_silu := type(act).__name__ in ("SiLU", "SiLUActivation"):
                act = partial(silu, inplace=True)
            layers.append(_folded(layer, (q, k, v), o, (gate, up, down), act, gates_by_silu))
        return layers


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies such matrices: bfloat16 only on processors with some of AVX-512."""
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported
    return dtype == torch.float32 or (dtype == torch.bfloat16 and supported())


def _folded(
    layer: Layer, qkv: Sequence[Affine], o: Affine, gated: Sequence[Affine], act: Linear, gates_by_silu: bool
) -> Folded:
    gate, up, down = gated
    exact = o[0].dtype == torch.float32
    units = [Unit(norm, exact) for norm in (layer.before, layer.after)]
    heads, rule, factor = [len(w) // layer.head for w, _ in qkv[:2]], layer.rule, None
    if layer.q_norm is not None and layer.k_norm is not None:
        units.append(Unit(layer.q_norm, True))
        q, k = _constant(layer.q_norm), _constant(layer.k_norm)
        if exact:
            q, rule = q * rule.scaling, rule._replace(scaling=1.0)
        factor = torch.cat([x.expand(n, -1) for x, n in zip((q, k), heads, strict=True)])
    own = {f.name: getattr(layer, f.name) for f in fields(layer)}
    before, after = (_constant(norm) if exact else None for norm in (layer.before, layer.after))
    own |= {
        "rule": rule,
        "out": _Product(o),
        "mlp": _Gated(_Product(gate, scale=after), _Product(up, scale=after), _Product(down), act, gates_by_silu),
    }
    return Folded(**own, product=_Product(*qkv, scale=before), heads=heads, units=units, factor=factor)


@dataclass
class Folded(Layer):
    """A layer whose matrices, in float32, hold what is constant about the norms before them: little is left between."""

    out: _Product
    mlp: _Gated
    product: _Product
    """Queries, keys and values of x."""
    heads: list[int]
    """Of queries, and of keys and values."""
    units: list[Unit]
    """In the place of `before`, `after` and, where there are some, the norms of queries and keys."""
    factor: Tensor | None
    """What is constant about the norms of queries and keys, in float32 the factor of scores included: queries in
    bfloat16 are those of training, which are not rounded once more. [h+K,D]"""

    def enter(self, x: Tensor, plus: Tensor | None, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert plus is None
        made = self.product(self.units[0](x)).unflatten(-1, (-1, self.head))
        turned, v = made.split([sum(self.heads), self.heads[1]], 1)
        if self.factor is not None:
            turned = self.units[2](turned, self.factor)
        q, k = rotate(turned, cos, sin).split(self.heads, 1)
        return x, q, k, v

    def leave(self, x: Tensor, found: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.out(found).add_(x)
        return self.mlp(self.units[1](x)).add_(x), None


class Unit:
    """x over its norm; and what is constant about a root-mean-square norm, where no matrix has taken it in."""

    def __init__(self, norm: Norm, taken: bool) -> None:
        self.least = (norm.eps * len(norm.weight)) ** 0.5
        self.floor = torch.tensor(self.least)
        self.constant = None if taken else _constant(norm)

    def __call__(self, x: Tensor, constant: Tensor | None = None) -> Tensor:
        constant, wide = self.constant if constant is None else constant, x.float()
        unit = wide / torch.hypot(torch.linalg.vector_norm(wide, dim=-1, keepdim=True), self.floor)
        return (unit if constant is None else unit.mul_(constant)).to(x.dtype)


def _constant(norm: Norm) -> Tensor:
    """What x over its norm is multiplied by, in float32. [H]"""
    return norm.weight.float() * len(norm.weight) ** 0.5


@dataclass
class _Gated:
    gate: _Product
    up: _Product
    down: _Product
    act: Linear
    silu: bool

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)).mul_(self.up(x)))


class _Product:
    """x [n,H] -> x times scale [H] times the matrices, side by side; what that gave is kept where somebody keeps it."""

    def __init__(self, *parts: Affine, scale: Tensor | None = None) -> None:
        weight = torch.cat([w for w, _ in parts])
        if scale is not None:
            weight = weight * scale
        self.first = parts[0][0]
        self.bias = None if parts[0][1] is None else torch.cat([b for _, b in parts if b is not None])
        self.width, self.multiply = len(weight), torch.ops.mkldnn._linear_pointwise
        self.plain = weight.dtype == torch.float32 and weight.numel() <= _SMALL and not row_counts.by_onednn()
        self.packed = weight.T.contiguous() if self.plain else torch.ops.mkldnn._reorder_linear_weight(weight, 32)

    def __call__(self, x: Tensor) -> Tensor:
        out = self.alone(x)
        if (kept := replay.current()) is not None:
            kept.keep(self.first, out)
        return out

    def alone(self, x: Tensor) -> Tensor:
        """Without keeping it."""
        if self.plain:
            return x @ self.packed if self.bias is None else torch.addmm(self.bias, x, self.packed)
        return row_counts.cut(self.multiply(row_counts.widened(x), self.packed, self.bias, "none", [], ""), x.shape[0])


def weight_and_bias(module: Any) -> Affine | None:
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
