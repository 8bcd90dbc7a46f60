"""What generation computed, kept for the first update's forward pass: the same products of the same tokens.

While the weights are those that sampled, a training forward would multiply every token by every matrix once more. The
engine keeps what its products gave, and the forward reads it; only the backward pass multiplies. What is kept is found
by the tokens themselves, so a rollout that was changed, cut or made elsewhere is computed as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor

WIDE = 256
"""Hidden size from which products take longer than writing down what they gave, and reading it."""

_current: ContextVar[Replay | None] = ContextVar("replay", default=None)


def current() -> Replay | None:
    """What is written or read at this moment, if anything is."""
    return _current.get()


class Replay:
    """A table a weight, a line a token: of prompts first, then of B rows of completions, `width` lines each; one more
    line takes what nobody needs. Prompts and rows are looked up by their tokens.
    """

    def __init__(
        self, weights: Sequence[Tensor], prompt_tokens: int, rows: int, width: int, used: Replay | None = None
    ) -> None:
        self.weights = {id(w): w for w in weights}
        self.made_of = [(w._version, w.data_ptr()) for w in weights]
        self.first, self.width, self.lines = prompt_tokens, width, prompt_tokens + rows * width
        self.tables: dict[int, Tensor]
        if used is not None and used.tables.keys() == self.weights.keys() and used.capacity > self.lines:
            self.tables = used.tables  # memory that is mapped already: pages are slow to get
        else:  # made outside inference mode: a backward pass will need them
            self.tables = {id(w): torch.empty(self.lines + 1, len(w), dtype=w.dtype, device=w.device) for w in weights}
        self.prompts: dict[tuple[int, ...], int] = {}
        self.rows: dict[tuple[int, bytes], int] = {}
        self.at: Tensor | slice = slice(0, 0)
        self.reading = False
        self.encoded = 0

    @property
    def capacity(self) -> int:
        return min(len(t) for t in self.tables.values())

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tables.values())

    @property
    def fresh(self) -> bool:
        """Whether the weights are still those that were multiplied by."""
        return [(w._version, w.data_ptr()) for w in self.weights.values()] == self.made_of

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, products are kept, of tokens that `encode` and `step` announce."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @contextmanager
    def read(self, at: Tensor) -> Iterator[None]:
        """Inside, products of the tokens that stand in lines `at` [L] are read."""
        token = _current.set(self)
        self.reading, self.at = True, _as_slice(at)
        try:
            yield
        finally:
            self.reading = False
            _current.reset(token)

    def encode(self, prompts: Sequence[Sequence[int]], last: Tensor, length: int) -> None:
        """The next forward is over these prompts, packed in a row of `length` tokens; `last` [n] end them."""
        self.at = torch.arange(self.encoded, self.encoded + length, device=last.device)
        for prompt, end in zip(prompts, last.tolist(), strict=True):
            self.prompts[tuple(prompt)] = self.encoded + end + 1 - len(prompt)
        self.encoded += length

    def step(self, rows: Tensor, taken: Tensor, active: Tensor) -> None:
        """The next forward is over the last of the tokens that these rows [n] have taken, if they are still active."""
        self.at = torch.where(active, self.first + rows * self.width + taken - 1, self.lines)

    def finish(self, prompts: Mapping[tuple[int, ...], Sequence[int]], tokens: Tensor, counts: Tensor) -> None:
        """All is kept: each prompt's rows, and their tokens [B,T], of which `counts` [B] were sampled."""
        words, sizes = tokens.cpu().numpy(), counts.tolist()
        for prompt, rows in prompts.items():
            if (start := self.prompts.get(prompt)) is not None:
                for row in rows:
                    self.rows[start, words[row, : sizes[row]].tobytes()] = self.first + row * self.width

    def narrow(self, rows: Tensor) -> None:
        """From now on the forward is over these of its tokens [N]."""
        self.at = self.at[rows] if isinstance(self.at, Tensor) else _as_slice(rows + (self.at.start or 0))

    def known(self, weight: Tensor) -> Tensor | None:
        """The product of the forward's tokens with a weight, where it is kept and not being made. [L,O]"""
        table = self.tables.get(id(weight)) if self.reading else None
        return None if table is None else table[self.at]

    def keep(self, weight: Tensor, product: Tensor) -> None:
        """Note what the forward's tokens times a weight gave, while it is being made."""
        table = None if self.reading else self.tables.get(id(weight))
        if table is not None:
            assert isinstance(self.at, Tensor)
            table.index_copy_(0, self.at, product)

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
        words, begins = tokens.cpu().numpy(), []
        for i, (group, count) in enumerate(zip(groups.tolist(), counts.tolist(), strict=True)):
            prompt = known[group]
            begin = None if prompt is None else self.rows.get((prompt, words[i, :count].tobytes()))
            if begin is None:
                return None
            begins.append(begin)
        lines = torch.empty(length, dtype=torch.int64, device=at.device)
        row, place = mask.nonzero(as_tuple=True)
        lines[at] = torch.tensor(begins, device=at.device)[row] + place - 1
        first = place == 0
        for last, group in zip(at[first].tolist(), groups[row[first]].tolist(), strict=True):
            size, begin = len(prompts[group]), known[group]
            assert begin is not None
            lines[last - size + 1 : last + 1] = torch.arange(begin, begin + size, device=at.device)
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

    def room(self, weights: Sequence[Tensor], prompt_tokens: int, rows: int, width: int) -> Replay | None:
        """For the tokens of one call; None where there is nothing to keep or no room."""
        each = sum(len(w) * w.element_size() for w in weights)
        left = self.limit - sum(call.bytes for call in self.calls)
        if each == 0 or (prompt_tokens + rows * width + 1) * each > left:
            return None
        used, self.used = self.used, None
        return Replay(weights, prompt_tokens, rows, width, used)

    def reading(
        self, prompts: Sequence[Sequence[int]], groups: Tensor, tokens: Tensor, mask: Tensor, at: Tensor, length: int
    ) -> AbstractContextManager[None]:
        """Inside, the products of a packed row are read, if one call kept all of them and the weights are the same. The
        arguments are those of `Replay.locate`.
        """
        if not all(call.fresh for call in self.calls):
            self.forget()
        for call in self.calls:
            lines = call.locate(prompts, groups, tokens, mask, at, length)
            if lines is not None:
                return call.read(lines)
        return nullcontext()


def _as_slice(at: Tensor) -> Tensor | slice:
    """Lines that follow one another are read without a copy."""
    first = int(at[0])
    in_line = torch.equal(at, torch.arange(first, first + len(at), device=at.device))
    return slice(first, first + len(at)) if in_line else at
