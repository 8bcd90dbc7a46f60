"""A causal LM as a body and a head, so that only the hidden states that matter are projected to the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coterie.rollout.engines.decode import accepted_arguments

_PROBE = 5
"""Tokens of the check that head(body) is the model's logits."""


class SplitModel:
    """`body` maps ids to hidden states, `head` maps hidden states to logits; `exact` says the two compose to the model.

    The head is the output embedding followed by what architectures do to logits by configuration: a scale (Cohere's
    `logit_scale`), a divisor (Granite's `logits_scaling`), a soft cap (Gemma 2's `final_logit_softcapping`,
    arXiv:2408.00118). At construction the composition is compared with the model's own logits on a few tokens. Where
    they differ, or the model exposes no decoder, `exact` is False and callers use `full_logits`: slower, never wrong.
    A PEFT wrapper is looked through: its adapters live inside the base model's layers.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.takes_cache_flag = "use_cache" in accepted_arguments(model)
        config = self.base.config.get_text_config()
        self.scale = getattr(config, "logit_scale", None)
        self.divisor = getattr(config, "logits_scaling", None)
        self.cap = getattr(config, "final_logit_softcapping", None)
        self.vocabulary = self.base.get_output_embeddings().weight.shape[0]
        self.exact = self._composes()

    def body(self, ids: Tensor) -> Tensor:
        """Last hidden states [B,T,H] of right-padded ids [B,T].

        No attention mask is needed: a causal model's position sees nothing to its right, where all the padding is.
        """
        return self.base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H]."""
        logits = self.base.get_output_embeddings()(hidden)
        if self.scale is not None:
            logits = logits * self.scale
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits

    @property
    def linear_head(self) -> Tensor | None:
        """The [V,H] matrix that is all of the head, or None where the head does more (an adapter, a bias, a scale)."""
        output = self.base.get_output_embeddings()
        bare = type(output) is torch.nn.Linear and output.bias is None and not output._forward_hooks
        return output.weight if bare and self.scale is self.divisor is self.cap is None else None

    def full_logits(self, ids: Tensor) -> Tensor:
        """Logits [B,T,V] by the model's own forward."""
        flag = {"use_cache": False} if self.takes_cache_flag else {}
        return self.model(input_ids=ids, **flag).logits

    @torch.no_grad()
    def _composes(self) -> bool:
        if self.base.get_decoder() is None or self.base.get_decoder() is self.base:
            return False
        ids = torch.arange(_PROBE, device=self.model.device).unsqueeze(0) % self.vocabulary
        want, got = self.full_logits(ids), self.head(self.body(ids))
        return want.shape == got.shape and torch.equal(want, got.to(want.dtype))
