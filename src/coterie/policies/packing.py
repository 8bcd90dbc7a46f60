"""Prompts and completions as one rectangle of ids, and where in it each decision is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


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
