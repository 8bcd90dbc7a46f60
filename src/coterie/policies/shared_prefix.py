"""A decoder run on one packed row in which the prompt of a group stands once (Prefix Grouper, arXiv:2506.05433), and so
does what rollouts that forked from one another have in common.

Everything position-wise runs on each real token once, by transformers' own code; attention is `two_part_attention`.
Values and gradients are those of G separate rows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from coterie.native import attention as native
from coterie.policies import replay
from coterie.policies.attention import Attention, Rule, attending, current, register
from coterie.policies.llama import Llama
from coterie.policies.packing import PackedGroups, pack, pack_groups
from coterie.policies.split import SplitModel
from coterie.policies.two_part import Layout, two_part_attention
from coterie.rollout.engines.decode import accepted_arguments

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
"""Of the self-check, in units of the largest hidden value; float64 models still have norms in float32."""


class _TwoPart:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        kept = replay.current()
        return two_part_attention(q, k, v, self.layout, rule, None if kept is None else kept.attended(layer))


class _Recording(_TwoPart):
    """Also notes the sliding window of each layer that asks."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.windows: dict[int, int | None] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        self.windows[layer] = rule.window
        return super().__call__(layer, q, k, v, rule)


class SharedPrefix:
    """Runs a split model's decoder on packed groups. `exact` says that a self-check gave what separate rows give.

    What can be shared is decided by trying: models whose attention does not go through the interface (BLOOM), that mix
    tokens in other ways (state spaces), or that count positions by themselves fail the check and keep separate rows.
    """

    def __init__(self, split: SplitModel) -> None:
        self.split = split
        self.llama: Llama | None = None
        self.exact = split.exact and self._agrees()
        if self.exact and Llama.fits(self.decoder):
            self.llama = Llama(self.decoder)
            if not self._agrees():
                self.llama = None

    @property
    def ragged(self) -> bool:
        """Whether padding between groups costs nothing (see `pack_groups`)."""
        return self.llama is not None and native.computes(self.config, self.decoder)

    @property
    def decoder(self) -> Any:
        return self.split.base.get_decoder()

    @property
    def config(self) -> Any:
        return self.decoder.config

    def body(self, packed: PackedGroups) -> Tensor:
        """Last hidden states [N,H] that predict the decisions; of twins only the first."""
        at = packed.at if packed.twins is None else packed.at[packed.twins.first]
        return self.run(packed.ids, packed.positions, _TwoPart(packed.layout), at)

    def run(self, ids: Tensor, positions: Tensor, attention: Attention, at: Tensor) -> Tensor:
        """Last hidden states [N,H] at `at` [N] of one row of tokens: ids and positions [1,L], attention as given."""
        checkpointing = torch.is_grad_enabled() and getattr(self.decoder, "gradient_checkpointing", False)
        if self.llama is not None and not self.llama.hooked and not checkpointing:
            rows, back = at.unique(return_inverse=True)
            return self.llama(ids, positions, attention, rows).index_select(0, back)
        with attending(self.config, attention):
            out = self.decoder(input_ids=ids, position_ids=positions, use_cache=False)
        return out.last_hidden_state[0][at]

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """`context_fn` of torch's checkpoint: a layer made again in the backward pass attends as in its forward."""
        attention = current()
        return nullcontext(), nullcontext() if attention is None else attending(self.config, attention)

    @torch.no_grad()
    def _agrees(self) -> bool:
        layers = getattr(self.config, "num_hidden_layers", None)
        goes_through = getattr(self.split.base, "_supports_attention_backend", False)
        takes = accepted_arguments(self.decoder)
        if layers is None or not goes_through or not {"position_ids", "input_ids"} <= takes:
            return False
        register()
        device = self.split.model.device
        prompts = [tuple(i % self.split.vocabulary for i in p) for p in ((3, 1, 4, 1, 5), (9, 2))]
        groups = torch.tensor([0, 0, 1, 1, 1], device=device)
        tokens = (torch.arange(20, device=device) * 7 % 11).view(5, 4) % self.split.vocabulary
        mask = torch.arange(4, device=device) < torch.tensor([[4], [2], [3], [1], [4]], device=device)
        ids, row, column = pack(prompts, groups, tokens, mask)
        want = self.split.body(ids)[row, column]
        packed = pack_groups(prompts, groups, tokens, mask)
        attention = _Recording(packed.layout)
        got = self.run(packed.ids, packed.positions, attention, packed.at)
        if attention.windows != _declared_windows(self.config, layers):
            return False
        limit = _TOLERANCE.get(want.dtype, 0.1) * float(want.abs().max())
        return bool(((got - want).abs() <= limit).all())


def _declared_windows(config: Any, layers: int) -> dict[int, int | None] | None:
    """The sliding window of each layer. The check's few tokens fit in any window, so this is compared separately."""
    window = getattr(config, "sliding_window", None)
    types = (
        getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"] * layers
    )
    if not set(types) <= {"full_attention", "sliding_attention"}:
        return None
    return {layer: window if kind == "sliding_attention" else None for layer, kind in enumerate(types)}
