"""Prompts that go on from earlier ones: a turn's prompt is the last turn's and more, and only the more is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from coterie.policies.attention import Rule
from coterie.policies.two_part import block_elements


class Block(NamedTuple):
    """Prompts encoded together, and their keys and values: a tensor a layer, [n,K,P,D], right-padded."""

    prompts: list[tuple[int, ...]]
    keys: list[Tensor]
    values: list[Tensor]


class Found(NamedTuple):
    """The beginning of a prompt that is known: `size` tokens, in row `row` of a block. No block: nothing is known."""

    size: int = 0
    block: Block | None = None
    row: int = 0


@dataclass
class Memory:
    """What the last call of `generate` encoded, until it is closed. Tokens are compared, so that whoever rewrites the
    past gets what any prompt gets. At most `limit` tokens are kept, padding included; what is beyond is encoded again.
    """

    limit: int
    closed: bool = False
    encoded: int = 0
    """Tokens that were encoded, for people who measure."""
    fresh: list[Block] = field(default_factory=list)
    index: dict[tuple[int, ...], list[tuple[Block, int]]] = field(default_factory=dict)
    shortest: int = 0

    def next_call(self) -> None:
        """From now on find what the call before encoded."""
        known = [(block, row) for block in self.fresh for row in range(len(block.prompts))]
        self.shortest = min((len(block.prompts[row]) for block, row in known), default=0)
        self.index, self.fresh = {}, []
        for block, row in known:
            self.index.setdefault(block.prompts[row][: self.shortest], []).append((block, row))

    def find(self, prompt: tuple[int, ...]) -> Found:
        """The longest beginning of a prompt that is known; never all of it: its last token is always encoded."""
        best = Found()
        for block, row in self.index.get(prompt[: self.shortest], ()):
            known = block.prompts[row]
            if len(known) > best.size and prompt[: len(known)] == known:
                best = Found(min(len(known), len(prompt) - 1), block, row)
        return best

    def keep(self, prompts: Sequence[Sequence[int]], keys: list[Tensor], values: list[Tensor]) -> None:
        held = sum(len(b.prompts) * b.keys[0].shape[2] for b in self.fresh)
        if held + len(prompts) * keys[0].shape[2] <= self.limit:
            self.fresh.append(Block([tuple(p) for p in prompts], keys, values))

    def close(self) -> None:
        self.closed = True
        self.fresh, self.index = [], {}


class Extension:
    """Attention of the tokens that follow what is known of n prompts: to that, and causally to each other.

    `ids`, `positions` [1,L] are those tokens, `last` [n] the place of each prompt's last. As attention it fills `keys`
    and `values`, a tensor a layer, [n,K,W,D].
    """

    def __init__(self, prompts: Sequence[Sequence[int]], found: Sequence[Found], device: torch.device) -> None:
        sizes, known = [len(p) for p in prompts], [f.size for f in found]
        new = torch.tensor([n - k for n, k in zip(sizes, known, strict=True)], device=device)
        ids = [t for p, k in zip(prompts, known, strict=True) for t in p[k:]]
        self.sizes = torch.tensor(sizes, device=device)
        self.last = new.cumsum(0) - 1
        self.row = torch.repeat_interleave(torch.arange(len(sizes), device=device), new)
        within = torch.arange(len(ids), device=device) - (self.last - new + 1)[self.row]
        self.at = within + torch.tensor(known, device=device)[self.row]
        self.ids, self.positions = torch.tensor([ids], device=device), self.at.unsqueeze(0)
        self.within = within
        self.queries = (self.last - new + 1).unsqueeze(1) + torch.minimum(
            torch.arange(int(new.max()), device=device), new.unsqueeze(1) - 1
        )
        self.width = max(sizes)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.sources: dict[int, tuple[Block, list[int], list[int]]] = {}
        for i, f in enumerate(found):
            if f.block is not None:
                _, mine, theirs = self.sources.setdefault(id(f.block), (f.block, [], []))
                mine.append(i)
                theirs.append(f.row)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        keys, values = self._filled("keys", layer, k), self._filled("values", layer, v)
        self.keys.append(keys)
        self.values.append(values)
        heads = k.shape[1]
        repeat = q.shape[1] // heads
        slots = torch.arange(self.width, device=q.device)
        out = q.new_empty(len(q), q.shape[1], v.shape[2])
        step = max(1, block_elements(q.device) // (q.shape[1] * self.queries.shape[1] * self.width))
        for first in range(0, len(self.queries), step):
            some = slice(first, first + step)
            place = self.queries[some]
            together = (q[place] * rule.scaling).unflatten(2, (heads, repeat)).permute(0, 2, 1, 3, 4).flatten(2, 3)
            at = self.at[place].unsqueeze(-1)
            unseen = slots > at if rule.window is None else (slots > at) | (at - slots >= rule.window)
            unseen = unseen.repeat_interleave(repeat, 1).unsqueeze(1)
            scores = together @ keys[some].mT
            scores = scores if scores.dtype == torch.float64 else scores.float()
            if rule.softcap is not None:
                scores.div_(rule.softcap).tanh_().mul_(rule.softcap)
            weights = scores.masked_fill_(unseen, float("-inf")).softmax(-1).to(values.dtype)
            rows = (weights @ values[some]).unflatten(2, (-1, repeat)).permute(0, 2, 1, 3, 4)
            mine = (self.row >= first) & (self.row < first + step)
            out[mine] = rows.flatten(2, 3)[self.row[mine] - first, self.within[mine]]
        return out

    def _filled(self, kind: str, layer: int, new: Tensor) -> Tensor:
        """What is known and what is new side by side: [n,K,W,D]."""
        store = new.new_zeros(len(self.sizes), new.shape[1], self.width, new.shape[2])
        for block, mine, theirs in self.sources.values():
            known = getattr(block, kind)[layer][:, :, : self.width]
            store[mine, :, : known.shape[2]] = known[theirs]
        store[self.row, :, self.at] = new
        return store
