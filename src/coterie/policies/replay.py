"""What generation computed, kept for the first update's forward pass: the same products of the same tokens.

While the weights are those that sampled, a training forward would multiply every token by every matrix once more. The
engine keeps what its products gave, and the forward reads it; only the backward pass multiplies. What is kept is found
by the tokens themselves, so a rollout that was changed, cut or made elsewhere is computed as ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coterie.policies.two_part import Attended

if TYPE_CHECKING:
    from coterie.policies.llama import Llama

_current: ContextVar[Replay | None] = ContextVar("replay", default=None)


def current() -> Replay | None:
    """What is written or read at this moment, if anything is."""
    return _current.get()


class Replay:
    """A table a product and a layer's attention, a line a token, in the order in which tokens went through the model.
    Prompts and rows are looked up by their tokens.
    """

    def __init__(self, llama: Llama, prompt_tokens: int, rows: int, width: int, used: Replay | None = None) -> None:
        products, heads = llama.products(), llama.heads
        # norms and embeddings too: what stands before a product is of them
        self.made_of = [(w, w._version, w.data_ptr()) for w in llama.decoder.parameters()]
        lines, widths = prompt_tokens + rows * width, [sum(map(len, product)) for product in products]
        widths += [count * each for count, each in heads]
        self.tables: list[Tensor]
        self.sums: list[Tensor]
        first = products[0][0]
        if used is not None and used.fits(first, lines, widths):
            self.tables, self.sums = used.tables, used.sums  # memory that is mapped already: pages are slow to get
        else:  # made outside inference mode: a backward pass will need them
            self.tables = [torch.empty(lines, n, dtype=first.dtype, device=first.device) for n in widths]
            wide = torch.promote_types(first.dtype, torch.float32)
            self.sums = [torch.empty(lines, count, dtype=wide, device=first.device) for count, _ in heads]
        self.place = {
            id(w): (table, sum(map(len, product[:i])), len(w))
            for table, product in zip(self.tables, products, strict=False)
            for i, w in enumerate(product)
        }
        """Of each weight its table, and the columns there."""
        self.heads = heads
        self.line = torch.zeros(rows, width, dtype=torch.int64, device=self.tables[0].device)
        """Of each row's tokens."""
        self.prompts: dict[tuple[int, ...], tuple[int, Tensor]] = {}
        """Number, and the lines of its tokens."""
        self.rows: dict[tuple[int, bytes], list[int]] = {}
        """Rows by their prompt's number and their tokens."""
        self.filled = 0
        self.at: Tensor | slice = slice(0, 0)
        self.some: Tensor | None = None
        """The forward's tokens that are written down; None: all."""
        self.wide = 0
        """How many tokens it has."""
        self.reading = False

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in [*self.tables, *self.sums])

    def fits(self, like: Tensor, lines: int, widths: Sequence[int]) -> bool:
        """Whether these tables have room for so many lines of such products."""
        one = self.tables[0]
        alike = (one.dtype, one.device) == (like.dtype, like.device)
        return alike and len(one) >= lines and [t.shape[1] for t in self.tables] == widths

    @property
    def fresh(self) -> bool:
        """Whether the weights are still those that were multiplied by."""
        return all((w._version, w.data_ptr()) == (version, where) for w, version, where in self.made_of)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, products are kept, of tokens that `encode` and `step` announce."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @contextmanager
    def read(self, at: Tensor | slice) -> Iterator[None]:
        """Inside, products of the tokens that stand in lines `at` [L] are read."""
        token = _current.set(self)
        self.reading, self.at = True, at
        try:
            yield
        finally:
            self.reading = False
            _current.reset(token)

    def encode(self, prompts: Sequence[Sequence[int]], last: Tensor, length: int) -> None:
        """The next forward is over these prompts, packed in a row of `length` tokens; `last` [n] end them. Their lines
        are the last of the block: with the completions after them they are what predicts something.
        """
        ends = torch.zeros(length, dtype=torch.bool, device=last.device)
        ends[last] = True
        self.at, self.some = torch.empty(length, dtype=torch.int64, device=last.device), None
        self.at[torch.argsort(ends, stable=True)] = torch.arange(self.filled, self.filled + length, device=last.device)
        self.filled += length
        for prompt, end in zip(prompts, last.tolist(), strict=True):
            self.prompts[tuple(prompt)] = len(self.prompts), self.at[end + 1 - len(prompt) : end + 1]

    def step(self, rows: Tensor, taken: Tensor, active: Tensor) -> None:
        """The next forward is over the last of the tokens that these rows [n] have taken, if they are still active."""
        self.some = None if bool(active.all()) else active.nonzero().squeeze(-1)
        if self.some is not None:
            rows, taken = rows[self.some], taken[self.some]
        self.at, self.wide = slice(self.filled, self.filled + len(rows)), len(active)
        self.line[rows, taken - 1] = torch.arange(self.at.start, self.at.stop, device=rows.device)
        self.filled += len(rows)

    def finish(self, prompts: Mapping[tuple[int, ...], Sequence[int]], tokens: Tensor, counts: Tensor) -> None:
        """All is kept: each prompt's rows, and their tokens [B,T], of which `counts` [B] were sampled."""
        words, sizes = tokens.cpu().numpy(), counts.tolist()
        for prompt, rows in prompts.items():
            if prompt in self.prompts:
                for row in rows:
                    key = self.prompts[prompt][0], words[row, : sizes[row]].tobytes()
                    self.rows.setdefault(key, []).append(row)

    def narrow(self, rows: Tensor) -> None:
        """From now on the forward is over these of its tokens [N]."""
        self.at = self.at[rows] if isinstance(self.at, Tensor) else as_slice(rows + self.at.start)

    def known(self, weight: Tensor) -> Tensor | None:
        """The product of the forward's tokens with a weight, where it is kept and not being made. [L,O]"""
        if not self.reading or id(weight) not in self.place:
            return None
        table, first, width = self.place[id(weight)]
        return self._read(table[:, first : first + width])

    def keep(self, weight: Tensor, product: Tensor) -> None:
        """Note what the forward's tokens times a weight gave, and those beside it, while it is being made. [L,O]"""
        if not self.reading and id(weight) in self.place:
            table, first, _ = self.place[id(weight)]
            self._write(table, first, product)

    def lines(self) -> Tensor:
        """Of each of the forward's tokens the place among those that are written down, -1 where it is not. [L]"""
        assert isinstance(self.at, slice)
        each = torch.arange(self.at.stop - self.at.start, device=self.line.device)
        return each if self.some is None else torch.full((self.wide,), -1).index_copy_(0, self.some, each)

    def target(self, weight: Tensor) -> tuple[int, int] | None:
        """For whoever writes by address: that of the first of these places in a product's table, and how many elements
        the next is behind it; None if it is not kept."""
        if id(weight) not in self.place:
            return None
        table, first, _ = self.place[id(weight)]
        return self._address(table, first)

    def targets_of_attention(self, layer: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The same of what attention found, and of its log-sums."""
        return self._address(self.tables[layer - len(self.heads)]), self._address(self.sums[layer])

    def _address(self, table: Tensor, column: int = 0) -> tuple[int, int]:
        assert isinstance(self.at, slice)
        stride = table.stride(0)
        return table.data_ptr() + (self.at.start * stride + column) * table.element_size(), stride

    def attended(self, layer: int) -> Attended | None:
        """What attention found for the forward's tokens, where it is kept and not being made."""
        if not self.reading:
            return None
        table = self.tables[layer - len(self.heads)]
        return Attended(self._read(table).unflatten(1, self.heads[layer]), self._read(self.sums[layer]))

    def _read(self, table: Tensor) -> Tensor:
        return table[self.at] if isinstance(self.at, slice) else table.index_select(0, self.at)

    def keep_attended(self, layer: int, found: Attended) -> None:
        """Note what attention found for the forward's tokens, while it is being made."""
        if not self.reading:
            self._write(self.tables[layer - len(self.heads)], 0, found.out.flatten(1))
            self._write(self.sums[layer], 0, found.log_sum)

    def _write(self, table: Tensor, first: int, x: Tensor) -> None:
        target = table[:, first : first + x.shape[1]]
        x = x if self.some is None else x.index_select(0, self.some)
        if isinstance(self.at, slice):
            target[self.at].copy_(x)
        else:
            target.index_copy_(0, self.at, x)

    def locate(
        self, prompts: Sequence[Sequence[int]], groups: Tensor, tokens: Tensor, mask: Tensor, at: Tensor, length: int
    ) -> Tensor | None:
        """The line of each token of a packed row, [L]; `at` [N] is the place that predicts each decision. None where
        some row is not known, or where not all its tokens are decisions.
        """
        counts, slots = mask.sum(-1), torch.arange(mask.shape[1], device=mask.device)
        if bool((mask != (slots < counts.unsqueeze(-1))).any()):
            return None
        known = {group: self.prompts.get(tuple(prompts[group])) for group in groups.unique().tolist()}
        words, mine, seen = tokens.cpu().numpy(), [], Counter[tuple[int, bytes]]()
        for i, (group, count) in enumerate(zip(groups.tolist(), counts.tolist(), strict=True)):
            prompt = known[group]
            key = (-1 if prompt is None else prompt[0], words[i, :count].tobytes())
            if (alike := self.rows.get(key)) is None:
                return None
            mine.append(alike[seen[key] % len(alike)])
            seen[key] += 1
        lines = torch.empty(length, dtype=torch.int64, device=at.device)
        row, place = mask.nonzero(as_tuple=True)
        first = place == 0
        lines[at[~first]] = self.line[torch.tensor(mine, device=at.device)[row[~first]], place[~first] - 1]
        for last, group in zip(at[first].tolist(), groups[row[first]].tolist(), strict=True):
            _, own = known[group]  # type: ignore[misc]
            lines[last - len(own) + 1 : last + 1] = own
        return lines


class Kept:
    """What the calls of one step kept, the memory of those of the step before, and how many bytes there may be."""

    def __init__(self) -> None:
        self.limit = 0
        self.calls: list[Replay] = []
        self.used: Replay | None = None

    @contextmanager
    def keeping(self, limit: int) -> Iterator[None]:
        """Inside, generation keeps what the model's products gave, where all of a call fits in so many bytes."""
        self.limit = limit
        try:
            yield
        finally:
            self.limit = 0

    def forget(self) -> None:
        """Keep nothing but the memory it was in."""
        if self.calls:
            self.used = max(self.calls, key=lambda call: call.bytes)
        self.calls = []

    def room(self, llama: Llama, prompt_tokens: int, rows: int, width: int) -> Replay | None:
        """For the tokens of one call; None where there is nothing to keep or no room."""
        if not (products := llama.products()):
            return None
        size = products[0][0].element_size()
        each = sum(len(w) for product in products for w in product) * size
        each += sum(count * (own * size + max(size, 4)) for count, own in llama.heads)
        left = self.limit - sum(call.bytes for call in self.calls)
        if (prompt_tokens + rows * width) * each > left:
            return None
        used, self.used = self.used, None
        return Replay(llama, prompt_tokens, rows, width, used)

    def find(
        self, prompts: Sequence[Sequence[int]], groups: Tensor, tokens: Tensor, mask: Tensor, at: Tensor, length: int
    ) -> tuple[Replay, Tensor] | None:
        """The call that kept the products of all of a packed row, and the line of each token; None where there is none
        of the same weights. The arguments are those of `Replay.locate`.
        """
        if not all(call.fresh for call in self.calls):
            self.forget()
        for call in self.calls:
            lines = call.locate(prompts, groups, tokens, mask, at, length)
            if lines is not None:
                return call, lines
        return None


def as_slice(at: Tensor) -> Tensor | slice:
    """Lines that follow one another are read without a copy."""
    first = int(at[0])
    in_line = torch.equal(at, torch.arange(first, first + len(at), device=at.device))
    return slice(first, first + len(at)) if in_line else at
