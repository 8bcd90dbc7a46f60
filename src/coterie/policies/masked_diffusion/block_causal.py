"""Attention of block diffusion: a block's places see each other and all that is before, and nothing behind
(arXiv:2503.09573).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coterie.errors import PolicyError
from coterie.policies.masked_diffusion.schedule import plan
from coterie.sections import Unmask


def block_of(width: int, unmask: Unmask) -> Tensor:
    """The block of each place of a canvas, from 0. [C] int"""
    starts = sorted({step.start for step in plan(width, unmask)})
    return torch.bucketize(torch.arange(width), torch.tensor(starts), right=True) - 1


def visible(attention: Tensor, place: Tensor, block: Tensor) -> Tensor:
    """Who sees whom, [N,W,W] bool, first who looks. The prompt is a block before all others; padding is seen by nobody
    but itself.

    attention: [N,W] bool, whether a column is no padding; place: [N,C] columns of the canvas; block: [C].
    """
    rank = torch.zeros_like(attention, dtype=torch.long).scatter(1, place, (block.to(place) + 1).expand_as(place))
    seen = (rank.unsqueeze(1) <= rank.unsqueeze(2)) & attention.unsqueeze(1)
    return seen | torch.eye(attention.shape[1], dtype=torch.bool, device=attention.device)


def as_scores(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What transformers adds to attention's scores. [N,W,W] bool -> [N,1,W,W]"""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def check(model: Any, mask_id: int, other_id: int) -> None:
    """Refuse a model that does not look where it is told to."""
    hint = "model.attention=full"
    if "sliding_attention" in (getattr(model.config, "layer_types", None) or ()):
        raise PolicyError("the model's layers look through a window of their own", where="model.attention", hint=hint)
    told = as_scores(torch.tensor([[[True, False], [True, True]]], device=model.device), model.dtype)
    ids = torch.tensor([[mask_id, mask_id], [mask_id, other_id]], device=model.device)
    first = [model(input_ids=row.unsqueeze(0), attention_mask=told).logits[0, 0] for row in ids]
    if not torch.equal(*first):
        raise PolicyError("the model takes no mask of who sees whom", where="model.attention", hint=hint)
