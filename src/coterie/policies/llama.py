"""The decoder of the Llama family (Llama, Mistral, Qwen2, Qwen3) written out for one row of tokens without padding.

transformers' modules keep the weights; this is the same computation with fewer operations, for models small enough that
operations, not products, take the time. The model's linear layers are called as they are, so adapters act. Whoever uses
it compares it with transformers' own forward first (see `SharedPrefix`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from coterie.native import in_lines
from coterie.native import pieces as native
from coterie.policies import replay
from coterie.policies.attention import Attention, Rule
from coterie.policies.gated_mlp import gated_mlp
from coterie.policies.products import linear, linears

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Norm:
    """Root-mean-square norm (arXiv:1910.07467)."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        compiled = x.dim() == 2 and native.suits(x, self.weight)
        if not torch.is_grad_enabled() and not compiled and x.dtype in (torch.float32, torch.float64):
            return torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return _RMSNorm.apply(x, self.weight, self.eps)

    def added(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """x + y, where there is a y, and that normed."""
        if y is None:
            return x, self(x)
        if native.suits(x, y, self.weight):
            return _AddedNorm.apply(x, y, self.weight, self.eps)
        x = x + y
        return x, self(x)


@dataclass
class Layer:
    """One layer: norms, and its products as functions, so that they may be modules or packed weights."""

    before: Norm
    after: Norm
    q_norm: Norm | None
    k_norm: Norm | None
    head: int
    rule: Rule
    qkv: Callable[[Tensor], tuple[Tensor, ...]]
    out: Linear
    mlp: Linear

    def __call__(
        self,
        number: int,
        x: Tensor,
        plus: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        attention: Attention,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """x [L,H], and what is still to be added to it -> the same, or, of the last layer, of `rows` alone."""
        x, q, k, v = self.enter(x, plus, cos, sin)
        kept, rule = replay.current(), self.rule
        if rows is not None and (kept is None or kept.reading):  # what is being kept is kept whole
            asked = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            rule = rule._replace(asked=asked.index_fill_(0, rows, True))
        found = attention(number, q, k, v, rule).flatten(1)
        if rows is not None:
            found, x = found.index_select(0, rows), x.index_select(0, rows)
            if kept is not None:
                kept.narrow(rows)
        return self.leave(x, found)

    def enter(self, x: Tensor, plus: Tensor | None, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What stands before attention: x and `plus` [L,H] -> their sum, queries [L,h,D], keys and values [L,K,D]."""
        x, inner = self.before.added(x, plus)
        q, k, v = self.qkv(inner)
        norms = self.q_norm, self.k_norm
        weights = [None if norm is None else norm.weight for norm in norms]
        if self.head % 8 == 0 and self.head <= native.WIDEST and native.suits(q, k, cos, sin, *weights):
            q, k = _Heads.apply(q, k, self.head, *weights, *(0.0 if n is None else n.eps for n in norms), cos, sin)
            return x, q, k, v.unflatten(-1, (-1, self.head))
        q, k, v = (y.unflatten(-1, (-1, self.head)) for y in (q, k, v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return x, rotate(q, cos, sin), rotate(k, cos, sin), v

    def leave(self, x: Tensor, found: Tensor) -> tuple[Tensor, Tensor | None]:
        """What stands after it: x [L,H] and what attention found [L,h*D] -> [L,H], and what is to be added to it."""
        x, inner = self.after.added(x, self.out(found))
        return x, self.mlp(inner)


class Llama:
    """A decoder's layers. `fits` says whether a transformers decoder is built like this."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.layers = [_layer(layer, decoder.config) for layer in decoder.layers]
        self.watched = [m for layer in decoder.layers for m in (layer, layer.self_attn, layer.mlp)]

    @staticmethod
    def fits(decoder: Any) -> bool:
        if {name for name, _ in decoder.named_children()} != {"embed_tokens", "layers", "norm", "rotary_emb"}:
            return False
        return all(
            {n for n, _ in layer.named_children()} == _LAYER
            and {n for n, _ in layer.mlp.named_children()} == _MLP
            and {n for n, _ in layer.self_attn.named_children()} - {"q_norm", "k_norm"} == _ATTENTION
            and all(map(_is_norm, (layer.input_layernorm, layer.post_attention_layernorm)))
            for layer in decoder.layers
        ) and _is_norm(decoder.norm)

    @property
    def hooked(self) -> bool:
        """Whether somebody watches or wraps the modules that are passed by here."""
        return any(m._forward_hooks or m._forward_pre_hooks for m in self.watched)

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The number of each layer's heads, and their width."""
        return [
            (module.self_attn.o_proj.in_features // layer.head, layer.head)
            for layer, module in zip(self.layers, self.decoder.layers, strict=True)
        ]

    def products(self) -> list[tuple[Tensor, ...]]:
        """The weights whose products a forward takes from a `Replay`, if there is one, those of one factor together."""
        out: list[tuple[Tensor, ...]] = []
        for layer in self.decoder.layers:
            mine = layer.self_attn
            gated = [(m,) for m in _gated(layer.mlp) or ()]
            for modules in ((mine.q_proj, mine.k_proj, mine.v_proj), (mine.o_proj,), *gated):
                if all(map(_plain, modules)):
                    out.append(tuple(m.weight for m in modules))
        return out

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        attention: Attention,
        rows: Tensor | None = None,
        layers: list[Layer] | None = None,
    ) -> Tensor:
        """ids and positions [1,L] -> last hidden states [L,H], or those of `rows` alone [N,H]."""
        x = self.decoder.embed_tokens(ids)
        cos, sin = self.angles(x, positions)
        x, plus = x[0], None
        layers = self.layers if layers is None else layers
        for number, layer in enumerate(layers):
            x, plus = layer(number, x, plus, cos, sin, attention, rows if number == len(layers) - 1 else None)
        return self.last.added(x, plus)[1]

    @property
    def last(self) -> Norm:
        """The norm after the last layer."""
        return _norm(self.decoder.norm)

    def angles(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What `rotate` takes: of positions [1,L], for x of any shape but of this type and device. [L,1,D] each"""
        cos, sin = (y[0].unsqueeze(1) for y in self.decoder.rotary_emb(x, positions))
        half = sin.shape[-1] // 2
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)


def _is_norm(module: Any) -> bool:
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def _norm(module: Any) -> Norm:
    return Norm(module.weight, module.variance_epsilon)


def _layer(module: Any, config: Any) -> Layer:
    mine, mlp = module.self_attn, module.mlp
    normed = hasattr(mine, "q_norm")
    window = getattr(mine, "sliding_window", None)
    if not hasattr(mine, "sliding_window"):
        window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    return Layer(
        _norm(module.input_layernorm),
        _norm(module.post_attention_layernorm),
        _norm(mine.q_norm) if normed else None,
        _norm(mine.k_norm) if normed else None,
        mine.head_dim,
        Rule(mine.scaling, window),
        lambda x: _products((mine.q_proj, mine.k_proj, mine.v_proj), x),
        lambda x: _product(mine.o_proj, x),
        lambda x: _mlp(mlp, x),
    )


def _plain(module: Any) -> bool:
    """Whether a module is its weight alone: adapters, biases and hooks of others are left to act."""
    return type(module) is torch.nn.Linear and module.bias is None and not module._forward_hooks


def _product(module: Any, x: Tensor) -> Tensor:
    return linear(x, module.weight) if _plain(module) else module(x)


def _products(modules: Sequence[Any], x: Tensor) -> tuple[Tensor, ...]:
    if all(map(_plain, modules)):
        return linears(x, *(m.weight for m in modules))
    return tuple(_product(m, x) for m in modules)


def _gated(module: Any) -> tuple[Any, ...] | None:
    """The linear layers of an MLP that `gated_mlp` computes."""
    linears = (module.gate_proj, module.up_proj, module.down_proj)
    fits = all(map(_plain, linears)) and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")
    return linears if fits else None


def _mlp(module: Any, x: Tensor) -> Tensor:
    if (linears := _gated(module)) is not None:
        return gated_mlp(x, *(m.weight for m in linears))
    return module.down_proj(module.act_fn(module.gate_proj(x)) * module.up_proj(x))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864): x [L,h,D], cos and signed sin [L,1,D] -> [L,h,D]."""
    return _Rotate.apply(x, cos, sin) if torch.is_grad_enabled() else _rotated(x, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out, half = x * cos, x.shape[-1] // 2
    out[..., :half].addcmul_(x[..., half:], sin[..., :half])
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None


class _Heads(torch.autograd.Function):
    """Heads of queries and keys normed, where there are norms, and turned, by a compiled function: [L,h*D] -> [L,h,D]
    twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        width: int,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        q_eps: float,
        k_eps: float,
        cos: Tensor,
        sin: Tensor,
    ) -> tuple[Tensor, Tensor]:
        cos, sin = cos.contiguous(), sin.contiguous()
        queries, q_scale = native.head(q, width, q_weight, q_eps, cos, sin)
        keys, k_scale = native.head(k, width, k_weight, k_eps, cos, sin)
        ctx.save_for_backward(q, q_weight, q_scale, k, k_weight, k_scale, cos, sin)
        return queries, keys

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dqueries: Tensor, dkeys: Tensor) -> tuple[Tensor | None, ...]:
        q, q_weight, q_scale, k, k_weight, k_scale, cos, sin = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:5]
        dq, q_slope = native.head_backward(q, q_weight, q_scale, cos, sin, dqueries.contiguous(), needs[0])
        dk, k_slope = native.head_backward(k, k_weight, k_scale, cos, sin, dkeys.contiguous(), needs[1])
        return dq, dk, None, q_slope, k_slope, None, None, None, None


class _RMSNorm(torch.autograd.Function):
    """Statistics in float32 for half precision, as transformers computes them; float64 stays float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.compiled = x.dim() == 2 and native.suits(x, weight)
        if ctx.compiled:
            y, scale, _ = native.norm(x, weight, eps)
            ctx.save_for_backward(x, weight, scale)
            return y
        wide = x if x.dtype == torch.float64 else x.float()
        scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)  # rounded once, as where decoding computes it

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        if ctx.compiled:
            return *native.norm_backward(x, weight, scale, in_lines(grad), ctx.needs_input_grad[1]), None
        wide = scale.dtype
        unit = x.to(wide) * scale
        grad, factor = grad.to(wide), weight.to(wide)
        product = grad * unit
        dweight = product.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        along = (product @ factor).unsqueeze(-1).div_(x.shape[-1])
        dx = torch.addcmul(grad * factor, unit, along, value=-1).mul_(scale)
        return dx.to(x.dtype), dweight, None


class _AddedNorm(torch.autograd.Function):
    """x + y, and its norm, in one pass each way by compiled functions. x and y [L,H]"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        normed, scale, total = native.norm(x, weight, eps, y.contiguous())
        ctx.save_for_backward(total, weight, scale)
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor, dnormed: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, scale = ctx.saved_tensors
        dx, dweight = native.norm_backward(
            total, weight, scale, in_lines(dnormed), ctx.needs_input_grad[2], in_lines(dtotal)
        )
        return dx, dx, dweight, None
