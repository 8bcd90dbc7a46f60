"""Prompts and completions as one rectangle of ids, and where in it each decision is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from coterie.policies.two_part import Bundle, Layout


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


class PackedGroups(NamedTuple):
    """One row without padding in which each group's prompt stands once. `ids` and `positions` [1,L]; `at` [N] is the
    place that predicts decision n; decisions are in row-major order of `mask`."""

    ids: Tensor
    positions: Tensor
    at: Tensor
    layout: Layout


def pack_groups(prompts: Sequence[Sequence[int]], groups: Tensor, tokens: Tensor, mask: Tensor) -> PackedGroups:
    """Lay each group's prompt and then its completions in one row. groups [B], tokens and mask [B,T] -> PackedGroups.

    What is fed and what is context is as in `pack`. Rows without a decision, and groups without such rows, are left
    out. Groups of similar prompt lengths stand together, so that attention computes several at once.
    """
    device = tokens.device
    words, chosen = tokens.cpu().numpy(), mask.cpu().numpy()
    fed = np.where(chosen, np.arange(words.shape[1]), -1).max(1)  # all before the last decision; -1 without a decision
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        if fed[row] >= 0:
            members.setdefault(group, []).append(row)
    ids: list[Any] = []
    positions: list[Any] = []
    slot: list[Any] = []
    bundles = []
    start, last = np.zeros(len(fed), dtype=np.int64), np.zeros(len(fed), dtype=np.int64)
    here = place = 0
    for names in _bundles(prompts, members, fed, 2**21 if device.type == "cpu" else 2**26):
        sizes = [len(prompts[g]) for g in names]
        rows = max(len(members[g]) for g in names)
        length = max(int(fed[r]) for g in names for r in members[g])
        bundle = Bundle(place, len(names), max(sizes), rows, length, min(sizes), torch.tensor(sizes, device=device))
        for i, (group, size) in enumerate(zip(names, sizes, strict=True)):
            ids.append(np.asarray(prompts[group]))
            positions.append(np.arange(size))
            slot.append(place + i * bundle.prefix + positions[-1])
            here += size
            last[members[group]] = here - 1
        for i, (group, size) in enumerate(zip(names, sizes, strict=True)):
            for j, row in enumerate(members[group]):
                ids.append(words[row, : fed[row]])
                positions.append(size + np.arange(fed[row]))
                slot.append(bundle.middle + (i * rows + j) * length + positions[-1] - size)
                start[row] = here
                here += int(fed[row])
        bundles.append(bundle)
        place = bundle.end
    taker, decision = chosen.nonzero()
    at = np.where(decision == 0, last[taker], start[taker] + decision - 1)

    def there(parts: Any) -> Tensor:
        return torch.as_tensor(np.concatenate(parts) if isinstance(parts, list) else parts, device=device)

    padded = place > here
    layout = Layout(tuple(bundles), *_slots(np.concatenate(slot), place, device)) if padded else Layout(tuple(bundles))
    return PackedGroups(there(ids).unsqueeze(0), there(positions).unsqueeze(0), there(at), layout)


def _slots(slot: Any, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """token, slot and real of a Layout, from the slot of each token. Slots without a token read token 0."""
    token, real = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
    token[slot], real[slot] = np.arange(len(slot)), True
    return tuple(torch.as_tensor(x, device=device) for x in (token, slot, real))  # type: ignore[return-value]


def _bundles(prompts: Sequence[Sequence[int]], members: dict[int, list[int]], fed: Any, limit: int) -> list[list[int]]:
    """Groups to compute at once: of the same number of rows and similar lengths (padding costs at most half as much
    again), and no more than keep a bundle's scores, a head, within `limit`."""

    def shape(group: int) -> tuple[int, int, int]:
        return len(members[group]), len(prompts[group]), max(int(fed[r]) for r in members[group])

    parts: list[list[int]] = []
    box, work = (0, 0, 0), 0
    for group in sorted(members, key=shape):
        mine = shape(group)
        wide = (max(box[0], mine[0]), max(box[1], mine[1]), max(box[2], mine[2])) if parts else mine
        cost = (wide[1] + wide[0] * wide[2]) * (wide[1] + wide[2])
        work += (mine[1] + mine[0] * mine[2]) * (mine[1] + mine[2])
        if parts and wide[0] == mine[0] == box[0] and cost * (len(parts[-1]) + 1) <= min(limit, 1.5 * work):
            parts[-1].append(group)
            box = wide
        else:
            parts.append([group])
            box, work = mine, (mine[1] + mine[0] * mine[2]) * (mine[1] + mine[2])
    return parts
