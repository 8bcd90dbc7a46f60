"""Keys and values of rows being decoded, in stretches that rows share: what a prompt or a fork leaves is never copied.

A row's context is a chain of segments: its prompt, what it shared with others before each fork, and last its own. A
query meets each stretch by itself, all rows of a stretch in one product; its scores of all of them are a row of one
softmax. So forking costs the same however much lies before the fork.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from coterie.policies.attention import Rule

_FIRST = 32
"""Tokens a row has room for at first, where nothing is known of its length; the room doubles when it is full."""
_MOST = 256
"""Tokens a row has room for at first at the most."""
_FREE = 64
"""Slots of padding that are cheaper than attending twice, whatever stands beside them."""


class Block(NamedTuple):
    """Rows of so many slots each, and how many tokens they hold."""

    rows: int
    slots: int
    tokens: int


class Segments:
    """n stretches: keys and values a layer [n,K,P,D], right-padded; `starts` [n], the position of their first token,
    and `sizes` [n], their tokens. Row i of b continues stretch `of[i]`."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], starts: Tensor, sizes: Tensor, of: Tensor) -> None:
        self.keys, self.values, self.starts, self.sizes = keys, values, starts, sizes
        self.width, self.tokens = int(sizes.max()), int(sizes.sum())
        self.select(of)

    @property
    def block(self) -> Block:
        return Block(len(self.sizes), self.width, self.tokens)

    @classmethod
    def merged(cls, a: Segments, b: Segments) -> Segments:
        """The rows of both, those of `a` first. What both continue is held once."""
        if a.keys is b.keys:
            return cls(a.keys, a.values, a.starts, a.sizes, torch.cat([a.of, b.of]))
        width = max(a.width, b.width)

        def both(mine: list[Tensor], its: list[Tensor]) -> list[Tensor]:
            widen = [[pad(x, (0, 0, 0, width - x.shape[2])) for x in layers] for layers in (mine, its)]
            return [torch.cat(layer) for layer in zip(*widen, strict=True)]

        starts, sizes = torch.cat([a.starts, b.starts]), torch.cat([a.sizes, b.sizes])
        of = torch.cat([a.of, b.of + a.count])
        return cls(both(a.keys, b.keys), both(a.values, b.values), starts, sizes, of)

    def select(self, of: Tensor) -> None:
        """Give the rows new stretches, and work out where each row stands among those of its stretch."""
        count = len(self.sizes)
        members = torch.bincount(of, minlength=count)
        if int((members > 0).sum()) * 2 < count:
            self._shrink(members > 0)
            of = (members > 0).cumsum(0)[of] - 1
            members, count = members[members > 0], len(self.sizes)
        self.of, self.count, self.most = of, count, int(members.max())
        self._members: tuple[Tensor, Tensor] | None = None
        self.rows: Tensor | None = None
        self.place: Tensor | None = None
        regular = torch.arange(count, device=of.device).repeat_interleave(self.most)
        if not torch.equal(of, regular):
            order = of.argsort(stable=True)
            rank = torch.empty_like(of)
            rank[order] = torch.arange(len(of), device=of.device) - (members.cumsum(0) - members)[of[order]]
            self.place = of * self.most + rank
            self.rows = torch.zeros(count * self.most, dtype=of.dtype, device=of.device)
            self.rows[self.place] = torch.arange(len(of), device=of.device)
        slots = torch.arange(self.width, device=of.device)
        padded = int(self.sizes.min()) < self.width
        self.padding = (slots >= self.sizes[of].unsqueeze(-1)).view(-1, 1, 1, self.width) if padded else None

    def members(self) -> tuple[Tensor, Tensor]:
        """The rows [b], those of a stretch together, and where each stretch's begin there [n+1]."""
        if self._members is None:
            ends = torch.bincount(self.of, minlength=self.count).cumsum(0)
            self._members = self.of.argsort(stable=True), torch.cat([ends.new_zeros(1), ends])
        return self._members

    def _shrink(self, alive: Tensor) -> None:
        kept = alive.nonzero().squeeze(-1)
        self.keys = [k.index_select(0, kept) for k in self.keys]
        self.values = [v.index_select(0, kept) for v in self.values]
        self.starts, self.sizes = self.starts[kept], self.sizes[kept]
        self.tokens = int(self.sizes.sum())

    def score(self, layer: int, q: Tensor, out: Tensor) -> None:
        """Scores of q [b,K,r,D], already scaled, into `out` [b,K,r,P]."""
        self._write(self._together(q) @ self.keys[layer].mT, out)

    def mix(self, layer: int, weights: Tensor, out: Tensor) -> None:
        """Add the values, weighted by weights [b,K,r,P], to `out` [b,K,r,E]."""
        self._write(self._together(weights) @ self.values[layer], out, add=True)

    def unseen(self, positions: Tensor, furthest: int, window: int | None) -> Tensor | None:
        """[b,1,1,P]: padding, and what has slid out of the window of rows at `positions` [b], at most `furthest`."""
        if window is None or window > furthest:
            return self.padding
        keys = self.starts[self.of].unsqueeze(-1) + torch.arange(self.width, device=positions.device)
        beyond = (positions.unsqueeze(-1) - keys >= window).view(-1, 1, 1, self.width)
        return beyond if self.padding is None else beyond | self.padding

    def _together(self, x: Tensor) -> Tensor:
        """[b,K,r,X] -> [n,K,M,X], what belongs to a stretch side by side; places without a row hold any."""
        x = x if self.rows is None else x.index_select(0, self.rows)
        return x.unflatten(0, (self.count, self.most)).transpose(1, 2).flatten(2, 3)

    def _write(self, x: Tensor, out: Tensor, add: bool = False) -> None:
        """x [n,K,M,X] into `out` [b,K,r,X], or added to it."""
        x = x.unflatten(2, (self.most, -1)).transpose(1, 2)
        if self.place is not None:
            x = x.flatten(0, 1).index_select(0, self.place)
        else:
            out = out.unflatten(0, (self.count, self.most))
        out.add_(x) if add else out.copy_(x)


class Rows:
    """b rows decoded together, one token at a time: stretches they share, and their own keys and values.

    `positions` [b] are those of the tokens to come; `logits` [b,V] predict these tokens. The rows' own entries end in
    the same slot; `late` [b] is the first slot of each row, None where that is 0 for all.
    """

    def __init__(self, shared: list[Segments], positions: Tensor, logits: Tensor, furthest: int) -> None:
        self.shared, self.positions, self.logits, self.furthest = shared, positions, logits, furthest
        self.used, self.room = 0, _FIRST
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.late: Tensor | None = None
        self.blank: Tensor | None = None
        self.missing = 0

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def block(self) -> Block:
        return Block(len(self), self.used, len(self) * self.used - self.missing)

    @property
    def held(self) -> int:
        """Cached tokens of the stretches that rows share, padding included."""
        return sum(s.count * s.width for s in self.shared)

    @classmethod
    def merged(cls, a: Rows, b: Rows) -> Rows | None:
        """The rows of both, those of `a` first; `a` and `b` must not be used after that. None where it does not pay:
        most of it would be padding, or one of them forked more often.
        """
        stretches = list(zip(a.shared, b.shared, strict=False))
        sizes = [(x.block, y.block) for x, y in stretches if x.keys is not y.keys]
        if len(a.shared) != len(b.shared) or not all(worth_padding(*two) for two in [*sizes, (a.block, b.block)]):
            return None
        shared, furthest = [Segments.merged(x, y) for x, y in stretches], max(a.furthest, b.furthest)
        both = cls(shared, torch.cat([a.positions, b.positions]), torch.cat([a.logits, b.logits]), furthest)
        both.used = max(a.used, b.used)
        both.keys, both.values = both._side_by_side(a, a.keys, b, b.keys), both._side_by_side(a, a.values, b, b.values)
        late = [both.used - r.used + (r.late if r.late is not None else torch.zeros_like(r.positions)) for r in (a, b)]
        both._start_at(torch.cat(late))
        return both

    def _side_by_side(self, a: Rows, mine: dict[int, Tensor], b: Rows, its: dict[int, Tensor]) -> dict[int, Tensor]:
        out = {}
        for layer, like in (mine or its).items():
            out[layer] = whole = like.new_zeros(len(self), like.shape[1], self.used + _FIRST, like.shape[3])
            for rows, store, to in ((a, mine, whole[: len(a)]), (b, its, whole[len(a) :])):
                if store:
                    to[:, :, self.used - rows.used : self.used] = store[layer][:, :, : rows.used]
        return out

    def _start_at(self, late: Tensor) -> None:
        """Slots that no row uses are given up."""
        if spare := int(late.min()):
            for store in (self.keys, self.values):
                for layer, x in store.items():
                    store[layer] = x[:, :, spare:]
            self.used -= spare
            late = late - spare
        self.missing = int(late.sum())
        self.late, self.blank = late if self.missing else None, None

    def fork(self, rows: Tensor, steps: int = 0) -> Rows:
        """New rows of which row i goes on from row `rows[i]`, for about so many steps. This object must not be stepped
        after that.
        """
        shared = [Segments(s.keys, s.values, s.starts, s.sizes, s.of[rows]) for s in self.shared]
        if self.used:
            sizes = torch.full_like(self.positions, self.used) if self.late is None else self.used - self.late
            keys, values = ([self._from_the_left(x) for x in own.values()] for own in (self.keys, self.values))
            shared.append(Segments(keys, values, self.positions - sizes, sizes, rows))
        forked = Rows(shared, self.positions[rows], self.logits[rows], self.furthest)
        forked.room = min(max(steps, 1), _MOST)
        return forked

    def _from_the_left(self, x: Tensor) -> Tensor:
        """A layer's own entries, [b,K,used,D], without empty slots in front."""
        if self.late is None:
            return x[:, :, : self.used]
        slots = (torch.arange(self.used, device=x.device) + self.late.unsqueeze(-1)).clamp_max(self.used - 1)
        return x.gather(2, slots.view(len(x), 1, -1, 1).expand(-1, x.shape[1], -1, x.shape[3]))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, in this order."""
        for segments in self.shared:
            segments.select(segments.of[rows])
        for store in (self.keys, self.values):
            for layer, x in store.items():
                store[layer] = x[:, :, : self.used].index_select(0, rows)
        self.positions, self.logits = self.positions[rows], self.logits[rows]
        if self.late is not None:
            self._start_at(self.late[rows])

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule, sums: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Attention of one token a row: q [b,H,D], k [b,K,D], v [b,K,E] -> [b,H,E], and of its scores the logarithm of
        the sum of exponentials [b,H], if asked (else anything). Keeps k and v.
        """
        keys, values = self._store(self.keys, layer, k), self._store(self.values, layer, v)
        blank = self._blank()
        if rule.window is not None and rule.window <= self.used:
            keys, values = keys[:, :, -rule.window :], values[:, :, -rule.window :]
            blank = None if blank is None else blank[..., -rule.window :]
        q = (q if rule.scaling == 1.0 else q * rule.scaling).unflatten(1, (k.shape[1], -1))
        widths = [keys.shape[2], *(s.width for s in self.shared)]
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        scores = q.new_empty(*q.shape[:3], sum(widths), dtype=wide)
        parts = scores.split(widths, -1)
        parts[0].copy_(q @ keys.mT)
        for segments, part in zip(self.shared, parts[1:], strict=True):
            segments.score(layer, q, part)
        if rule.softcap is not None:
            scores.div_(rule.softcap).tanh_().mul_(rule.softcap)
        hidden = [blank, *(s.unseen(self.positions, self.furthest, rule.window) for s in self.shared)]
        for part, unseen in zip(parts, hidden, strict=True):
            if unseen is not None:
                part.masked_fill_(unseen, float("-inf"))
        top = scores.amax(-1, keepdim=True)  # torch's own softmax is slow where rows are short
        weights = scores.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)
        each = weights.to(values.dtype).split(widths, -1)
        out = (each[0] @ values).to(wide)
        for segments, some in zip(self.shared, each[1:], strict=True):
            segments.mix(layer, some, out)
        log_sum = total.log().add_(top) if sums else top
        return out.div_(total).to(q.dtype).flatten(1, 2), log_sum.flatten(1)

    def advance(self, logits: Tensor) -> None:
        """All layers have attended to one more token."""
        self.used += 1
        self.furthest += 1
        self.positions, self.logits = self.positions + 1, logits

    def _blank(self) -> Tensor | None:
        """[b,1,1,used+1]: empty slots, worked out once a step."""
        if self.late is not None and (self.blank is None or self.blank.shape[-1] != self.used + 1):
            slots = torch.arange(self.used + 1, device=self.late.device)
            self.blank = (slots < self.late.unsqueeze(-1)).view(-1, 1, 1, self.used + 1)
        return self.blank

    def _store(self, store: dict[int, Tensor], layer: int, x: Tensor) -> Tensor:
        """Append x [b,K,D] to the layer's own entries and return them all, [b,K,used+1,D]."""
        room = self._room(store, layer, x.shape[1], x.shape[2], x)
        room[:, :, self.used] = x
        return room[:, :, : self.used + 1]

    def room_for(self, layer: int, heads: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's own keys and values, with room for one more token at slot `used`. [b,heads,>used,width]"""
        keys, values = (self._room(store, layer, heads, width, like) for store in (self.keys, self.values))
        return keys, values

    def _room(self, store: dict[int, Tensor], layer: int, heads: int, width: int, like: Tensor) -> Tensor:
        room = store.get(layer)
        if room is None or room.shape[2] == self.used:
            wider = like.new_empty(len(self), heads, max(self.room, 2 * self.used), width)
            if room is not None:
                wider[:, :, : self.used] = room
            store[layer] = room = wider
        return room


def worth_padding(a: Block, b: Block) -> bool:
    """Whether to hold two blocks as one: at most half of it padding, or little."""
    rows = a.rows + b.rows
    return rows * max(a.slots, b.slots) <= 2 * (a.tokens + b.tokens) + rows * _FREE
