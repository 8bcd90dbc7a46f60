"""Prefill and step of a transformers model, with keys and values shared where its attention can be replaced by ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from coterie.policies import replay
from coterie.policies.attention import Attention, Rule
from coterie.policies.packing import PackedGroups, pack_groups
from coterie.policies.shared_prefix import SharedPrefix
from coterie.policies.two_part import Attended, attend_once
from coterie.rollout.engines.compiled import CompiledLayers
from coterie.rollout.engines.decode import DecodeState
from coterie.rollout.engines.fused import FusedStep
from coterie.rollout.engines.memory import Extension, Found, Memory
from coterie.rollout.engines.packed import PackedWeights
from coterie.rollout.engines.segments import Rows, Segments


class State(Protocol):
    """Rows about to take their next token, which `logits` [b,V] predict."""

    logits: Tensor
    held: int
    """Cached tokens of the prompts, padding included."""

    def __len__(self) -> int: ...
    def fork(self, rows: Tensor, steps: int = 0) -> Any: ...
    def keep(self, rows: Tensor) -> None: ...


class CachedDecoder:
    """Any causal LM, with transformers' own cache: a copy of the prompt's keys and values for each row. It has no use
    for a memory."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.memory: Memory | None = None

    def prefill(self, prompts: Sequence[Sequence[int]]) -> DecodeState:
        return DecodeState.prefill(self.model, prompts, self.model.device)

    def merge(self, a: DecodeState, b: DecodeState) -> DecodeState | None:
        """The rows of both in one state; None where that does not pay."""
        return DecodeState.merged(a, b)

    def step(self, states: Sequence[DecodeState], tokens: Sequence[Tensor]) -> None:
        for state, ids in zip(states, tokens, strict=True):
            state.step(ids)


class SharedDecoder:
    """A model that passes the self-check of `SharedPrefix`: nothing is copied a row, nothing is padded."""

    def __init__(self, shared: SharedPrefix, compiled: CompiledLayers | None = None) -> None:
        self.shared = shared
        self.layers: PackedWeights | CompiledLayers | None = compiled
        self.fused: FusedStep | None = None
        if compiled is None and shared.llama is not None:
            self.layers = PackedWeights(shared.llama)
            self.fused = FusedStep(shared.llama)
        self.memory: Memory | None = None

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Rows:
        """Encode non-empty prompts of any lengths in one forward pass without padding: one row a prompt. What an open
        memory knows of them is not encoded again.
        """
        if self.memory is None or self.memory.closed:
            return self._encode(prompts)[0]
        found = [self.memory.find(tuple(p)) for p in prompts]
        rows, attention = self._extend(prompts, found) if any(f.size for f in found) else self._encode(prompts)
        self.memory.keep(prompts, attention.keys, attention.values)
        self.memory.encoded += sum(map(len, prompts)) - sum(f.size for f in found)
        return rows

    def _extend(self, prompts: Sequence[Sequence[int]], found: Sequence[Found]) -> tuple[Rows, Extension]:
        attention = Extension(prompts, found, self.shared.split.model.device)
        hidden = self.shared.run(attention.ids, attention.positions, attention, attention.last)
        return self._rows(attention, hidden), attention

    def _rows(self, attention: _Prefill | Extension, hidden: Tensor) -> Rows:
        each = torch.arange(len(attention.sizes), device=hidden.device)
        prefix = Segments(attention.keys, attention.values, torch.zeros_like(each), attention.sizes, each)
        return Rows([prefix], attention.sizes, self.shared.split.head(hidden), prefix.width)

    def _encode(self, prompts: Sequence[Sequence[int]]) -> tuple[Rows, _Prefill]:
        device = self.shared.split.model.device
        each = torch.arange(len(prompts), device=device)
        nothing = torch.zeros(len(prompts), 1, dtype=torch.int64, device=device)
        packed = pack_groups(prompts, each, nothing, nothing == 0, ragged=self.shared.ragged)
        attention = _Prefill(packed, torch.tensor([len(p) for p in prompts], device=device))
        if (kept := replay.current()) is not None:
            kept.encode(prompts, packed.at, packed.ids.shape[1])
        hidden = self.shared.run(packed.ids, packed.positions, attention, packed.at)
        return self._rows(attention, hidden), attention

    def merge(self, a: Rows, b: Rows) -> Rows | None:
        """The rows of both in one state; None where that does not pay."""
        return Rows.merged(a, b)

    def step(self, states: Sequence[Rows], tokens: Sequence[Tensor]) -> None:
        """Append one token to every row of every state, in one forward pass, and predict the next."""
        ids = tokens[0] if len(tokens) == 1 else torch.cat(list(tokens))
        positions = states[0].positions if len(states) == 1 else torch.cat([s.positions for s in states])
        hidden = self._fused(ids, positions, states)
        if hidden is None:
            hidden = self._forward(ids.unsqueeze(0), positions.unsqueeze(0), _Step(states))
        logits = self.shared.split.head(hidden)
        for state, part in zip(states, logits.split([len(s) for s in states]), strict=True):
            state.advance(part)

    def _fused(self, ids: Tensor, positions: Tensor, states: Sequence[Rows]) -> Tensor | None:
        """The step's last hidden states, where one pass between products can be had."""
        llama = self.shared.llama
        if self.fused is None or llama is None or llama.hooked or not isinstance(self.layers, PackedWeights):
            return None
        layers = self.layers.layers()
        return self.fused(layers, ids, positions, states) if self.fused.fits(layers) else None

    def _forward(self, ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        llama = self.shared.llama
        if llama is None or llama.hooked:
            return self.shared.run(ids, positions, attention, torch.arange(ids.shape[1], device=ids.device))
        layers = self.layers.layers() if self.layers is not None else None
        return llama(ids, positions, attention, layers=layers)


class _Prefill:
    """Causal attention within each prompt of a packed row; keeps keys and values a layer as [n,K,P,D]."""

    def __init__(self, packed: PackedGroups, sizes: Tensor) -> None:
        self.layout, self.sizes = packed.layout, sizes
        offset = torch.arange(int(sizes.max()), device=sizes.device)
        first = (packed.at - sizes + 1).unsqueeze(-1)
        self.slots = first + offset.clamp_max(sizes.unsqueeze(-1) - 1)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        self.keys.append(k[self.slots].transpose(1, 2).contiguous())
        self.values.append(v[self.slots].transpose(1, 2).contiguous())
        found = attend_once(q, k, v, self.layout, rule)
        if (kept := replay.current()) is not None:
            kept.keep_attended(layer, found)
        return found.out


class _Step:
    """Each row's one token against its own context."""

    def __init__(self, states: Sequence[Rows]) -> None:
        self.states, self.sizes = states, [len(s) for s in states]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        kept = replay.current()
        parts = zip(self.states, *(x.split(self.sizes) for x in (q, k, v)), strict=True)
        found = [state.attend(layer, *qkv, rule, kept is not None) for state, *qkv in parts]
        out, log_sum = (x[0] if len(x) == 1 else torch.cat(x) for x in zip(*found, strict=True))
        if kept is not None:
            kept.keep_attended(layer, Attended(out, log_sum))
        return out
