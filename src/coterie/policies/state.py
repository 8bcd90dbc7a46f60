"""Trainable parameters by name, and putting saved ones back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from coterie.errors import PolicyError


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, tied ones once; not copied."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def copy_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy `state` into `own`. Raises PolicyError unless names and shapes agree exactly."""
    wrong = sorted(own.keys() ^ state.keys()) or sorted(n for n in own if own[n].shape != state[n].shape)
    if wrong:
        raise PolicyError(
            f"the saved weights do not fit this model: {len(wrong)} differ, first {wrong[0]}",
            where="load_state_dict",
            hint="load them with the model (and LoRA settings) they were saved from",
        )
    for name, p in own.items():
        p.copy_(state[name])
