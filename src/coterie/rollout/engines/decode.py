"""Rows being decoded on a transformers model: prefill, fork, drop and step. Trees fork it mid-sequence."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from coterie.rollout.engines.segments import Block, worth_padding


def accepted_arguments(model: Any) -> frozenset[str]:
    """Names that the model's own forward takes (looking through a PEFT wrapper, whose forward takes anything)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(base.forward).parameters)


@dataclass
class DecodeState:
    """n rows, each about to take its next token.

    `logits` [n,V] predict that token. `cache` holds keys and values of the L slots behind it, left-padded where rows
    differ in length: `mask` [n,L] marks real slots and is None when no row has padding (the fast case). `lengths` [n]
    counts real tokens, which is also the position of the token to come.
    """

    model: Any
    accepts: frozenset[str]
    cache: Any
    logits: Tensor
    mask: Tensor | None
    lengths: Tensor
    width: int
    """Slots that hold the longest prompt."""

    @property
    def held(self) -> int:
        """Cached tokens of the prompts, padding included."""
        return len(self) * self.width

    @classmethod
    def merged(cls, a: DecodeState, b: DecodeState) -> DecodeState | None:
        """The rows of both, those of `a` first; `a` and `b` must not be used after that. None where it does not pay
        (most of it would be padding) and for caches that do not keep everything (sliding windows, states).
        """
        slots = a.cache.get_seq_length(), b.cache.get_seq_length()
        blocks = [Block(len(s), n, int(s.lengths.sum())) for s, n in zip((a, b), slots, strict=True)]
        if not (_keeps_all(a.cache) and _keeps_all(b.cache) and worth_padding(*blocks)):
            return None
        more = [max(slots) - n for n in slots]
        for x, y in zip(a.cache.layers, b.cache.layers, strict=True):
            x.keys = torch.cat([pad(z.keys, (0, 0, n, 0)) for z, n in zip((x, y), more, strict=True)])
            x.values = torch.cat([pad(z.values, (0, 0, n, 0)) for z, n in zip((x, y), more, strict=True)])
        real = [s.lengths.new_ones(len(s), n) if s.mask is None else s.mask for s, n in zip((a, b), slots, strict=True)]
        mask = torch.cat([pad(m, (n, 0)) for m, n in zip(real, more, strict=True)])
        both = DecodeState(a.model, a.accepts, a.cache, a.logits, mask, a.lengths, max(a.width, b.width))
        both.logits, both.lengths = torch.cat([a.logits, b.logits]), torch.cat([a.lengths, b.lengths])
        both._trim(mask)
        return both

    def _trim(self, mask: Tensor) -> None:
        """Slots in front that no row uses are given up."""
        if spare := int(mask.amax(0).argmax()):
            mask = mask[:, spare:]
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, spare:], layer.values[:, :, spare:]
        self.mask = None if bool(mask.all()) else mask

    @classmethod
    def prefill(cls, model: Any, prompts: Sequence[Sequence[int]], device: torch.device) -> DecodeState:
        """Encode prompts (non-empty, any mix of lengths) in one forward pass: one row a prompt."""
        from transformers import DynamicCache

        width = max(len(p) for p in prompts)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        # Token 0 under the padding: any valid id does, because the mask hides it.
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        padded = any(len(p) != width for p in prompts)
        slots = torch.arange(width, device=device) - (width - lengths).unsqueeze(-1)
        mask = (slots >= 0).long() if padded else None
        state = cls(model, accepted_arguments(model), DynamicCache(config=model.config), ids, mask, lengths, width)
        state.logits = state._forward(ids, slots.clamp_min(0))
        return state

    def __len__(self) -> int:
        return len(self.lengths)

    def fork(self, rows: Tensor, steps: int = 0) -> DecodeState:
        """A new state whose row i is a copy of row `rows[i]`, history included; this one stays as it was."""
        # Shallow copies suffice: cache layers replace their tensors when they grow or select, never write into them.
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        forked = DecodeState(self.model, self.accepts, cache, self.logits, self.mask, self.lengths, self.width)
        forked.keep(rows)
        return forked

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only, in this order (repeats allowed)."""
        self.cache.batch_select_indices(rows)
        self.logits, self.lengths = self.logits[rows], self.lengths[rows]
        if self.mask is not None:
            self.mask = self.mask[rows]
            if _keeps_all(self.cache):
                self._trim(self.mask)

    def step(self, tokens: Tensor) -> None:
        """Append one token [n] to every row and predict the next."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self), 1)], dim=-1)
        self.logits = self._forward(tokens.unsqueeze(-1), self.lengths.unsqueeze(-1))
        self.lengths = self.lengths + 1

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        arguments = {"input_ids": ids, "attention_mask": self.mask, "past_key_values": self.cache, "use_cache": True}
        if "position_ids" in self.accepts:
            arguments["position_ids"] = positions
        if "logits_to_keep" in self.accepts:
            arguments["logits_to_keep"] = 1
        return self.model(**arguments).logits[:, -1]


def _keeps_all(cache: Any) -> bool:
    """Whether a cache holds every token it was given: no sliding window, no state instead of keys and values."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer and layer.is_initialized for layer in cache.layers)
