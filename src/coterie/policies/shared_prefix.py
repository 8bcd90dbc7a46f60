"""A decoder run on one packed row in which the prompt of a group stands once (Prefix Grouper, arXiv:2506.05433).

Everything position-wise (embeddings, norms, projections, RoPE, MLP) runs on each real token once, by transformers' own
code; attention is replaced through transformers' attention interface by `two_part_attention`. Values and gradients are
those of G separate rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor

from coterie.policies.packing import PackedGroups, pack, pack_groups
from coterie.policies.split import SplitModel
from coterie.policies.two_part import Layout, Rule, two_part_attention
from coterie.rollout.engines.decode import accepted_arguments

NAME = "coterie_shared_prefix"
"""Under this name transformers finds our attention, and, as no mask function goes by it, makes no mask."""

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
"""Of the self-check, in units of the largest hidden value; float64 models still have norms in float32."""

_layout: ContextVar[Layout] = ContextVar("layout")
_windows: ContextVar[list[int | None]] = ContextVar("windows")


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1,H,L,D], key and value [1,K,L,D] -> [1,L,H,D]."""
    rule = Rule(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    if (seen := _windows.get(None)) is not None:
        seen.append(sliding_window)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return two_part_attention(q, k, v, _layout.get(), rule).unsqueeze(0), None


class _Using(AbstractContextManager[None]):
    """Attention by `layout` inside; may be entered again and again, as recomputing a checkpointed layer does."""

    def __init__(self, config: Any, layout: Layout) -> None:
        self.config, self.layout = config, layout
        self.before: list[tuple[str | None, Token[Layout]]] = []

    def __enter__(self) -> None:
        self.before.append((self.config._attn_implementation, _layout.set(self.layout)))
        self.config._attn_implementation = NAME

    def __exit__(self, *_: object) -> None:
        name, token = self.before.pop()
        self.config._attn_implementation = name
        _layout.reset(token)


class SharedPrefix:
    """Runs a split model's decoder on packed groups. `exact` says that a self-check gave what separate rows give.

    What can be shared is decided by trying: models whose attention does not go through the interface (BLOOM), that mix
    tokens in other ways (state spaces), or that count positions by themselves fail the check and keep separate rows.
    """

    def __init__(self, split: SplitModel) -> None:
        self.split = split
        self.exact = split.exact and self._agrees()

    def body(self, packed: PackedGroups) -> Tensor:
        """Last hidden states [L,H] of the packed row."""
        decoder = self.split.base.get_decoder()
        with _Using(decoder.config, packed.layout):
            out = decoder(input_ids=packed.ids, position_ids=packed.positions, use_cache=False)
        return out.last_hidden_state[0]

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """`context_fn` of torch's checkpoint: a layer made again in the backward pass sees its forward's layout."""
        layout = _layout.get(None)
        config = self.split.base.get_decoder().config
        return nullcontext(), nullcontext() if layout is None else _Using(config, layout)

    @torch.no_grad()
    def _agrees(self) -> bool:
        decoder = self.split.base.get_decoder()
        config = decoder.config
        layers = getattr(config, "num_hidden_layers", None)
        goes_through = getattr(self.split.base, "_supports_attention_backend", False)
        if layers is None or not goes_through or not {"position_ids", "input_ids"} <= accepted_arguments(decoder):
            return False
        _register(_attend)
        device = self.split.model.device
        prompts = [(3, 1, 4, 1, 5), (9, 2)]
        groups = torch.tensor([0, 0, 1, 1, 1], device=device)
        tokens = (torch.arange(20, device=device) * 7 % 11).view(5, 4) % self.split.vocabulary
        mask = torch.arange(4, device=device) < torch.tensor([[4], [2], [3], [1], [4]], device=device)
        prompts = [tuple(i % self.split.vocabulary for i in p) for p in prompts]
        ids, row, column = pack(prompts, groups, tokens, mask)
        want = self.split.body(ids)[row, column]
        packed = pack_groups(prompts, groups, tokens, mask)
        token = _windows.set([])
        try:
            got = self.body(packed)[packed.at]
            windows = _windows.get()
        finally:
            _windows.reset(token)
        if windows != _declared_windows(config, layers):
            return False
        limit = _TOLERANCE.get(want.dtype, 0.1) * float(want.abs().max())
        return bool(((got - want).abs() <= limit).all())


def _declared_windows(config: Any, layers: int) -> list[int | None] | None:
    """The sliding window of each layer. The check's few tokens fit in any window, so this is compared separately."""
    window = getattr(config, "sliding_window", None)
    types = (
        getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"] * layers
    )
    if not set(types) <= {"full_attention", "sliding_attention"}:
        return None
    return [window if kind == "sliding_attention" else None for kind in types]


def _register(attend: Callable[..., Any]) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
