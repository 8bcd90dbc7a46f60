"""A decoding step of packed layers by the functions of `native/decode.c`: three calls a layer between its products.

The same step as `Llama` makes over the same packed weights, up to rounding; what the update replays is kept as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CDLL, byref
from typing import TypeGuard

import torch
from torch import Tensor

from coterie import native
from coterie.native import pointer
from coterie.native.decode import Level, Step, Table
from coterie.policies import replay, row_counts
from coterie.policies.llama import Layer, Llama
from coterie.policies.replay import Replay
from coterie.rollout.engines.packed import Folded, Unit
from coterie.rollout.engines.segments import Rows, Segments

_WIDEST = 128
"""Head that `native/decode.c` has room for."""
_ANGLES = 256
"""Positions whose angles are worked out at once, at the least."""
_NOWHERE = Table(None, 0)


class FusedStep:
    """Each row's one token through all layers."""

    def __init__(self, llama: Llama) -> None:
        self.llama = llama
        self.seen: Sequence[object] | None = None
        self.last: Unit | None = None
        self.angles: tuple[Tensor, Tensor] | None = None

    def fits(self, layers: Sequence[Layer] | None) -> TypeGuard[Sequence[Folded]]:
        """Whether all of these layers are such as `native/decode.c` computes."""
        if layers is not self.seen:
            fits = layers is not None and all(map(_fits, layers))
            self.seen, self.last = layers, Unit(self.llama.last, False) if fits else None
        return self.last is not None

    def _angles(self, x: Tensor, positions: Tensor, furthest: int) -> tuple[Tensor, Tensor]:
        """Those of positions [n], none beyond `furthest`: [n,1,D] each."""
        if self.llama.decoder.rotary_emb.rope_type != "default":  # others may depend on how far a call reaches
            return self.llama.angles(x.unsqueeze(0), positions.unsqueeze(0))
        if self.angles is None or len(self.angles[0]) <= furthest or self.angles[0].dtype != x.dtype:
            every = torch.arange(2 * furthest + _ANGLES, device=x.device).unsqueeze(0)
            self.angles = self.llama.angles(x.unsqueeze(0), every)
        cos, sin = self.angles
        return cos.index_select(0, positions), sin.index_select(0, positions)

    def __call__(self, layers: Sequence[Folded], ids: Tensor, positions: Tensor, states: Sequence[Rows]) -> Tensor:
        """ids and positions [n] of the rows of all states -> last hidden states [n,H]."""
        x = self.llama.decoder.embed_tokens(ids)
        do, kept, threads = native.functions(x.dtype), replay.current(), torch.get_num_threads()
        assert do is not None and self.last is not None
        cos, sin = self._angles(x, positions, max(state.furthest for state in states))
        count, width = x.shape
        inner, ends = row_counts.empty(x, count, width), None if kept is None else kept.lines()
        line = pointer(ends)
        attention = _Attention(do, threads, layers[0], states, cos.contiguous(), sin, ends)
        y, below = None, _NOWHERE

        def add_and_norm(y: Tensor | None, unit: Unit, table: Table) -> None:
            do.add_and_norm(
                threads, count, width, x.data_ptr(), pointer(y), unit.least, pointer(unit.constant), inner.data_ptr(),
                table, line,
            )  # fmt: skip

        for number, layer in enumerate(layers):
            add_and_norm(y, layer.units[0], below)
            found = attention(number, layer, layer.product.alone(inner), kept)
            y = layer.out.alone(found)
            add_and_norm(y, layer.units[1], _table(kept, layer.out.first))
            mlp = layer.mlp
            gate, up = mlp.gate.alone(inner), mlp.up.alone(inner)
            tables = _table(kept, mlp.gate.first), _table(kept, mlp.up.first)
            do.gated(threads, count, gate.shape[1], gate.data_ptr(), up.data_ptr(), *tables, line)
            y, below = mlp.down.alone(gate), _table(kept, mlp.down.first)
        add_and_norm(y, self.last, below)
        return inner


def _fits(layer: Layer) -> bool:
    return (
        isinstance(layer, Folded)
        and layer.head <= _WIDEST
        and layer.rule.softcap is None
        and layer.mlp.silu
        and layer.head % 16 == 0
        and layer.out.width % 8 == layer.mlp.gate.width % 8 == 0
        and native.functions(layer.out.first.dtype) is not None
    )


class _Attention:
    """Of the rows of each state, against their own context: what is the same for all layers, and a call a layer."""

    def __init__(
        self,
        do: CDLL,
        threads: int,
        layer: Folded,
        states: Sequence[Rows],
        cos: Tensor,
        sin: Tensor,
        ends: Tensor | None,
    ) -> None:
        self.do, self.threads, self.states = do, threads, states
        heads, kv = layer.heads
        self.found = row_counts.empty(cos, len(cos), heads * layer.head)
        queries, out = torch.empty_like(self.found), torch.empty_like(self.found, dtype=torch.float32)
        sums = out.new_empty(2, len(cos), heads)
        self.used = cos, sin, ends, queries, out, sums  # must live as long as their addresses are used
        self.steps, first = [], 0
        for state in states:
            self.steps.append(
                Step(
                    rows=len(state),
                    heads=heads,
                    kv=kv,
                    dim=layer.head,
                    cos=cos[first:].data_ptr(),
                    sin=sin[first:].data_ptr(),
                    positions=state.positions.data_ptr(),
                    used=state.used,
                    late=pointer(state.late),
                    queries=queries[first:].data_ptr(),
                    top=sums[0, first:].data_ptr(),
                    total=sums[1, first:].data_ptr(),
                    out=out[first:].data_ptr(),
                    found=self.found[first:].data_ptr(),
                    line=None if ends is None else ends[first:].data_ptr(),
                )
            )
            first += len(state)

    def __call__(self, number: int, layer: Folded, made: Tensor, kept: Replay | None) -> Tensor:
        """made [n, (heads + 2 kv) head] -> what attention found [n, heads * head], good until the next call."""
        mine, width = made.data_ptr(), made.shape[1] * made.element_size()
        for state, step in zip(self.states, self.steps, strict=True):
            step.made, mine = mine, mine + len(state) * width
            step.scaling, step.window = layer.rule.scaling, layer.rule.window or 0
            if layer.factor is not None:
                step.factor, step.floor = layer.factor.data_ptr(), layer.units[2].least
            keys, values = state.room_for(number, layer.heads[1], layer.head, made)
            step.keys, step.values = keys.data_ptr(), values.data_ptr()
            step.row_stride, step.head_stride = keys.stride(0), keys.stride(1)
            if kept is not None:
                outs, sums = kept.targets_of_attention(number)
                step.mades, step.outs, step.sums = _table(kept, layer.product.first), Table(*outs), Table(*sums)
            levels = [_level(s, number) for s in state.shared]
            self.do.attend(self.threads, byref(step), (Level * len(levels))(*levels), len(levels))
        return self.found


def _level(shared: Segments, layer: int) -> Level:
    keys, values = shared.keys[layer], shared.values[layer]
    members, first = shared.members()
    return Level(
        keys.data_ptr(),
        values.data_ptr(),
        len(shared.sizes),
        keys.stride(0),
        keys.stride(1),
        shared.starts.data_ptr(),
        shared.sizes.data_ptr(),
        members.data_ptr(),
        first.data_ptr(),
    )


def _table(kept: Replay | None, weight: Tensor) -> Table:
    """Where the products of a weight are written down."""
    target = None if kept is None else kept.target(weight)
    return _NOWHERE if target is None else Table(*target)
