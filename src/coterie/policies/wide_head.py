"""An output layer that computes in float32 whatever the model's precision (MiniMax-M1, arXiv:2506.13585; ScaleRL)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from coterie.errors import PolicyError


class Float32Linear(torch.nn.Linear):
    """A linear layer whose product and result are float32; its weights stay what they are, tied or not."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return functional.linear(input.float(), self.weight.float(), bias)


def widen_head(model: Any) -> None:
    """Let a model's logits be float32 products, in place: for the sampler and for the trainer, which share it."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        raise PolicyError(
            f"the output layer is a {type(head).__name__}, not a plain linear layer",
            where="model.float32_head",
            hint="leave model.float32_head out",
        )
    head.__class__ = Float32Linear
