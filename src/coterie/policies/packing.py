"""Prompts and completions as one rectangle or one row of ids, and where in it each decision is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from coterie.policies.two_part import Bundle, Layout

_BUNDLES = 64
"""Starting a bundle's operations takes as long as this part of the scores that fit in one."""


class Packed(NamedTuple):
    """`ids` [B,W], right-padded with 0. `row`, `column` [N] locate the position that predicts decision n; decisions
    are in row-major order of `mask`."""

    ids: Tensor
    row: Tensor
    column: Tensor


def pack(prompts: Sequence[Sequence[int]], groups: Tensor, tokens: Tensor, mask: Tensor) -> Packed:
    """Lay each row's prompt and completion side by side. groups [B], tokens and mask [B,T] -> Packed.

    Tokens that are not decisions but lie before the last decision (a tool's output) stay as context. The last decision
    itself predicts nothing and is not fed, so W is the longest prompt plus completion, less one.
    """
    device = tokens.device
    sizes = torch.tensor([len(p) for p in prompts], device=device)
    widest = int(sizes.max())
    table = torch.tensor([[*p, *[0] * (widest - len(p))] for p in prompts], device=device)
    size = sizes[groups].unsqueeze(-1)
    slots = torch.arange(tokens.shape[1], device=device)
    used = torch.where(mask, slots + 1, 0).amax(1, keepdim=True)
    width = max(1, int((size + used).max()) - 1)
    column = torch.arange(width, device=device).expand(len(groups), width)
    completion = tokens.gather(1, (column - size).clamp(0, tokens.shape[1] - 1))
    ids = table[groups.unsqueeze(-1), column.clamp_max(widest - 1)]
    ids = torch.where(column < size, ids, torch.where(column < size + used, completion, 0))
    row, decision = mask.nonzero(as_tuple=True)
    return Packed(ids, row, sizes[groups[row]] + decision - 1)


class Twins(NamedTuple):
    """Decisions that rows have in common: `first` [M] are the distinct ones, decision n is the `number` [N]-th."""

    first: Tensor
    number: Tensor


class PackedGroups(NamedTuple):
    """One row without padding in which what a group's rows share stands once. `ids` and `positions` [1,L]; `at` [N] is
    the place that predicts decision n; decisions are in row-major order of `mask`. No `twins`: all are distinct."""

    ids: Tensor
    positions: Tensor
    at: Tensor
    layout: Layout
    twins: Twins | None = None

    def ordered(self, order: Tensor) -> PackedGroups:
        """The same tokens in another order: the i-th is the order[i]-th of these. order [L]"""
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return self._replace(
            ids=self.ids[:, order],
            positions=self.positions[:, order],
            at=place[self.at],
            layout=self.layout.ordered(order, place),
        )


def pack_groups(
    prompts: Sequence[Sequence[int]],
    groups: Tensor,
    tokens: Tensor,
    mask: Tensor,
    branch: Tensor | None = None,
    ragged: bool = False,
) -> PackedGroups:
    """Lay each group's prompt and then its completions in one row. groups [B], tokens and mask [B,T] -> PackedGroups.

    What is fed and what is context is as in `pack`. Rows without a decision, and groups without such rows, are left
    out. Groups of similar prompt lengths stand together, so that attention computes several at once.

    `ragged`: attention passes over padding by itself, so groups of any lengths stand together.

    `branch` [B] says at which token a row was forked from another of its group (less than 1: at none). What rows have
    in common up to a fork stands once. That is found from the tokens, so a wrong fork cannot give wrong values.
    """
    device = tokens.device
    words, chosen = tokens.cpu().numpy(), mask.cpu().numpy()
    forks = np.zeros(len(words), dtype=np.int64) if branch is None else branch.cpu().numpy().clip(0)
    forked = bool(forks.any())
    fed = np.where(chosen, np.arange(words.shape[1]), -1).max(1)  # all before the last decision; -1 without a decision
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        if fed[row] >= 0:
            members.setdefault(group, []).append(row)
    families: list[_Family] = []
    for group, rows in members.items():
        if forked and len(rows) > 1 and forks[rows].any():
            families += _tree(group, len(prompts[group]), rows, words, fed, np.unique([0, *forks[rows]]))
        else:
            families.append(_Family(group, len(prompts[group]), rows, 0, [([r], int(fed[r])) for r in rows]))
    limit = 2**21 if device.type == "cpu" else 2**26
    together = _bundles(families, limit) if forked else [families] if ragged else _cut(families, limit)
    line = _Line()
    bundles: list[Bundle] = []
    place = np.zeros(words.shape, dtype=np.int64)  # what predicts each decision: the token before it
    start = dict.fromkeys(members, 0)
    paths: list[tuple[_Family, int]] = []
    end = 0
    for alike in together:
        sizes = [f.size for f in alike]
        width, length = (max(f.shape[i] for f in alike) for i in (0, 2))
        size = torch.tensor(sizes, device=device)
        bundle = Bundle(end, len(alike), max(sizes), width, length, min(sizes), size, alike[0].repeated)
        for i, f in enumerate(alike):
            slot = bundle.start + i * bundle.prefix
            if f.repeated:
                paths.append((f, slot))
                continue
            here = line.add(np.concatenate([prompts[f.group], words[f.rows[-1], : f.begin]]), 0, slot)
            start[f.group] = int(here[0])
            place[members[f.group], : f.begin + 1] = here[f.size - f.begin - 1 :]
        if not forked:  # whole completions after a prompt: all at once
            slots = [bundle.middle + (i * width + j) * length for i, f in enumerate(alike) for j in range(len(f.parts))]
            line.add_rows(words, place, [f.rows for f in alike], fed, sizes, slots)
        else:
            for i, f in enumerate(alike):
                for j, (own, stop) in enumerate(f.parts):
                    slot = bundle.middle + (i * width + j) * length
                    place[own, f.begin + 1 : stop + 1] = line.add(words[own[-1], f.begin : stop], f.size, slot)
        bundles.append(bundle)
        end = bundle.end
    again = []
    for f, slot in paths:
        prompt = np.arange(f.size - f.begin) + start[f.group]
        again.append((slot + np.arange(f.size), np.concatenate([prompt, place[f.rows[-1], 1 : f.begin + 1]])))
    at = place[chosen]
    return PackedGroups(
        torch.as_tensor(np.concatenate(line.ids), device=device).unsqueeze(0),
        torch.as_tensor(np.concatenate(line.positions), device=device).unsqueeze(0),
        torch.as_tensor(at, device=device),
        line.layout(bundles, again, device),
        _twins(at, words[chosen], device) if forked else None,
    )


class _Line:
    """The packed row as it grows."""

    def __init__(self) -> None:
        self.count = 0
        self.ids: list[Any] = []
        self.positions: list[Any] = []
        self.slots: list[Any] = []

    def add(self, ids: Any, position: int, slot: int) -> Any:
        """Append tokens that begin at a position and in a slot of attention. Their places in the row."""
        steps = np.arange(len(ids))
        self.ids.append(np.asarray(ids, dtype=np.int64))
        self.positions.append(position + steps)
        self.slots.append(slot + steps)
        self.count += len(ids)
        return self.count - len(ids) + steps

    def add_rows(self, words: Any, place: Any, rows: list[list[int]], fed: Any, sizes: list[int], slots: Any) -> None:
        """Append what is fed of rows, by group, after prompts of these sizes; `place` is told where each token went."""
        every = np.concatenate([np.asarray(r, dtype=np.int64) for r in rows])
        counts = fed[every]
        row, total = np.repeat(every, counts), int(counts.sum())
        within = np.arange(total) - np.repeat(counts.cumsum() - counts, counts)
        self.ids.append(words[row, within].astype(np.int64, copy=False))
        self.positions.append(np.repeat(np.repeat(sizes, [len(r) for r in rows]), counts) + within)
        self.slots.append(np.repeat(slots, counts) + within)
        place[row, within + 1] = self.count + np.arange(total)
        self.count += total

    def layout(self, bundles: list[Bundle], again: list[tuple[Any, Any]], device: torch.device) -> Layout:
        """`again`: further slots, and the places of the tokens that they hold. Other slots read token 0."""
        slots = bundles[-1].end
        if slots == self.count:
            return Layout(tuple(bundles))
        token, real = np.zeros(slots, dtype=np.int64), np.zeros(slots, dtype=bool)
        slot = np.concatenate(self.slots)
        token[slot], real[slot] = np.arange(len(slot)), True
        for more, place in again:
            token[more] = place
        repeated = [np.concatenate([more for more, _ in again])] if again else []
        return Layout(tuple(bundles), *(torch.as_tensor(x, device=device) for x in (token, slot, real, *repeated)))


class _Family(NamedTuple):
    """What follows one path: a group's prompt and the first `begin` tokens that `rows` share; `size` tokens together.

    `parts` are the segments, each with the rows it is of (the last of them holds all its tokens) and the token before
    which it ends. `repeated`: the path stands elsewhere, as segments of other families.
    """

    group: int
    size: int
    rows: list[int]
    begin: int
    parts: list[tuple[list[int], int]]
    repeated: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Segments, tokens of the path, tokens of the longest segment."""
        return len(self.parts), self.size, max(stop for _, stop in self.parts) - self.begin

    @property
    def likeness(self) -> tuple[int, ...]:
        """What stands side by side when families are sorted by it. Of a group that was cut, rows of one length."""
        rows, size, length = self.shape
        return (rows, length, size) if self.repeated and not self.begin else (rows, size, length)

    def cut(self, halvings: int) -> list[_Family]:
        """The shorter half of its rows, the shorter half of the others, and so on: the last are the longest."""
        left, out = sorted(self.parts, key=lambda part: part[1]), []
        for _ in range(halvings):
            if len(left) > 1:
                some, left = left[: len(left) // 2], left[len(left) // 2 :]
                out.append(some)
        out.append(left)
        return [
            self._replace(rows=[r for rows, _ in some for r in rows], parts=some, repeated=i > 0)
            for i, some in enumerate(out)
        ]


def _tree(group: int, size: int, rows: list[int], words: Any, fed: Any, cuts: Any) -> list[_Family]:
    """The families of a prompt of `size` tokens whose rows share what they have in common up to one of `cuts`.

    `cuts` ascend from 0. A row that is the beginning of another has no segment of its own.
    """
    rows = sorted(rows, key=lambda r: words[r, : fed[r]].tobytes())  # what begins alike stands together, shorter first
    ends = fed[rows]
    width = int(ends.max())
    differ = (words[rows[1:], :width] != words[rows[:-1], :width]) | (np.arange(width) >= ends[:-1, None])
    alike = np.pad(differ, ((0, 0), (0, 1)), constant_values=True).argmax(1)
    within = width + 1  # of the next row
    shared = np.where(alike == ends[:-1], within, cuts[np.searchsorted(cuts, alike, "right") - 1])

    def common(low: int, high: int) -> int:
        return int(shared[low : high - 1].min(initial=within))

    families: list[_Family] = []
    todo = [(0, len(rows))]
    while todo:
        low, high = todo.pop()
        begin = common(low, high) % within  # one line of rows follows the prompt alone
        edges = [low, *(low + 1 + np.flatnonzero(shared[low : high - 1] == begin)).tolist(), high]
        parts = list(pairwise(edges))
        todo += [(a, b) for a, b in parts if common(a, b) < within]
        own = [(rows[a:b], min(common(a, b), int(ends[b - 1]))) for a, b in parts]
        families.append(_Family(group, size + begin, rows[low:high], begin, own, bool(families)))
    return families


def _twins(at: Any, taken: Any, device: torch.device) -> Twins | None:
    """Decisions at [N] one place that took [N] the same token are one."""
    _, first, number = np.unique(at * (taken.max() + 1) + taken, return_index=True, return_inverse=True)
    if len(first) == len(at):
        return None
    return Twins(torch.as_tensor(first, device=device), torch.as_tensor(number, device=device))


def _cut(families: list[_Family], limit: int) -> list[list[_Family]]:
    """Bundles of groups that share their prompts alone. Where lengths have a long tail, the longest rows of each group
    (half of them, a quarter, …) are bundled by themselves, as long as that saves more padding than a bundle costs.
    """
    best = _bundles(families, limit)
    exact = sum(_work(1, 0, stop, True) + stop * f.size for f in families for _, stop in f.parts)
    exact += sum(f.size**2 for f in families)
    least = _cost(best, limit)
    most = max((len(f.parts) for f in families), default=0)
    for halvings in range(1, most.bit_length()):
        if least - limit // _BUNDLES * len(best) - exact < limit // _BUNDLES:
            break  # little is padding
        bundles = _bundles([part for f in families for part in f.cut(halvings)], limit)
        if (cost := _cost(bundles, limit)) >= least:
            break
        best, least = bundles, cost
    return best


def _cost(bundles: list[list[_Family]], limit: int) -> float:
    """Scores, a head, of all bundles with their padding, and what it costs to start each."""
    total = 0.0
    for alike in bundles:
        box = [max(f.shape[i] for f in alike) for i in range(3)]
        total += len(alike) * _work(box[0], box[1], box[2], alike[0].repeated) + limit // _BUNDLES
    return total


def _work(rows: int, path: int, length: int, repeated: bool) -> int:
    """Scores of a family, a head."""
    return (rows * length + (0 if repeated else path)) * (path + length)


def _bundles(families: list[_Family], limit: int) -> list[list[_Family]]:
    """Families to compute at once: of similar lengths (padding costs at most half as much again) and, at a prompt, of
    the same number of rows; and no more than keep a bundle's scores, a head, within `limit`."""

    parts: list[list[_Family]] = []
    box, total = (0, 0, 0), 0
    for family in sorted(families, key=lambda f: (f.repeated, f.likeness)):
        mine, own = family.shape, _work(*family.shape, family.repeated)
        wide = (max(box[0], mine[0]), max(box[1], mine[1]), max(box[2], mine[2]))
        fits = bool(parts) and parts[-1][0].repeated == family.repeated and (family.repeated or mine[0] == box[0])
        total += own
        if fits and _work(*wide, family.repeated) * (len(parts[-1]) + 1) <= min(limit, 1.5 * total):
            parts[-1].append(family)
            box = wide
        else:
            parts.append([family])
            box, total = mine, own
    return parts
