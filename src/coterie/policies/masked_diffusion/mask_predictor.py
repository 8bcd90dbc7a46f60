"""The mask predictor: a bidirectional model, asked what stands at the masked places of canvases behind prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.errors import PolicyError
from coterie.policies.masked_diffusion import block_causal, likelihood
from coterie.policies.masked_diffusion.spec import MaskedDiffusionSpec
from coterie.rollout.engines.local import evaluating
from coterie.rollout.engines.sampling import widen

CHUNK = 2**14
"""Places of masked inputs a forward; memory only."""


@dataclass(frozen=True)
class MaskPredictor:
    """How a model is asked. The model itself is an argument: the reference, or a copy of the policy, has another."""

    mask_id: int
    pad_id: int
    spec: MaskedDiffusionSpec
    block: Tensor | None
    """[C] the block of each place, where attention is block-causal"""

    def logits(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        groups: Tensor,
        canvas: Tensor,
        hide: tuple[Tensor, float] | None = None,
    ) -> Tensor:
        """Logits of every place of each canvas [N,C] behind its group's prompt, the mask token impossible. [N,C,V]

        `hide`: seeds [N] and the share of the prompt's tokens that they hide.
        """
        ids, attention, place = self._lay_out(prompts, groups, canvas, hide)
        logits = self._forward(model, ids, attention, place)
        read = (place - 1).clamp_min(0) if self.spec.shifted else place
        here = logits.gather(1, read.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
        forbidden = torch.tensor([self.mask_id], device=here.device)
        return widen(here).index_fill(-1, forbidden, float("-inf"))

    def _lay_out(
        self, prompts: Sequence[Sequence[int]], groups: Tensor, canvas: Tensor, hide: tuple[Tensor, float] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Input ids [N,W], attention mask [N,W] and the places of the canvas in them [N,C]: prompt, canvas, padding."""
        lengths = torch.tensor([len(p) for p in prompts], device=canvas.device)
        longest = max(map(len, prompts))
        padded = torch.tensor([[*p, *[self.pad_id] * (longest - len(p))] for p in prompts], device=canvas.device)
        own = padded[groups]
        if hide is not None:
            own = likelihood.hide_prompt(own, *hide, self.mask_id)
        here = lengths[groups].unsqueeze(-1)
        place = here + torch.arange(canvas.shape[1], device=canvas.device)
        width = int(place.max()) + 1 if place.numel() else 0
        column = torch.arange(width, device=canvas.device)
        ids = own.new_full((len(canvas), width), self.pad_id)
        ids[:, : min(longest, width)] = own[:, :width]
        ids = ids.scatter(1, place, canvas)
        return ids, column < here + canvas.shape[1], place

    def _forward(self, model: Any, ids: Tensor, attention: Tensor, place: Tensor) -> Tensor:
        """Logits of every token, padding behind them left aside. [N,W] -> [N,W,V]

        A model's own code may not know of padding (LLaDA's did not at first): there, rows of one length go together.
        """
        told: dict[str, Tensor] = {} if bool(attention.all()) else {"attention_mask": attention.long()}
        if self.block is not None:
            seen = block_causal.visible(attention, place, self.block)
            told = {"attention_mask": block_causal.as_scores(seen, model.dtype)}
        if bool(attention.all()) or not self.spec.trust_remote_code:
            return model(input_ids=ids, **told).logits
        lengths = attention.sum(-1)
        parts, rows = [], []
        for length in lengths.unique().tolist():
            here = (lengths == length).nonzero().squeeze(-1)
            mine = {name: mask[here, :, :length, :length] for name, mask in told.items() if mask.dim() == 4}
            logits = model(input_ids=ids[here, :length], **mine).logits
            parts.append(torch.nn.functional.pad(logits, (0, 0, 0, ids.shape[1] - length)))
            rows.append(here)
        return torch.cat(parts)[torch.cat(rows).argsort()]

    @torch.no_grad()
    def check(self, model: Any) -> None:
        """Refuse a model whose places do not see what is behind them, or that does not look where it is told to."""
        device = model.device
        with evaluating(model):
            logits = [
                model(input_ids=torch.tensor([[self.mask_id, last]], device=device)).logits[0, 0]
                for last in (self.mask_id, self.pad_id)
            ]
            if torch.equal(*logits):
                raise PolicyError(
                    "the model's places do not see what comes after them: it is a causal LM",
                    where=self.spec.name,
                    hint="model.kind=causal_lm, or name a masked LM",
                )
            if self.block is not None:
                block_causal.check(model, self.mask_id, self.pad_id)


def chunks(canvas: Tensor) -> list[Tensor]:
    """The rows of a batch of canvases [N,C], cut so that few enough places are run through the model at once."""
    rows = torch.arange(len(canvas), device=canvas.device)
    return list(rows.split(max(1, CHUNK // canvas.shape[1]))) if len(rows) else []


def mask_token(model: Any, tokenizer: Any, spec: MaskedDiffusionSpec) -> int:
    """The token that masks a place, as the spec, the tokenizer or the model says."""
    for known in (spec.mask_token_id, tokenizer.mask_token_id, getattr(model.config, "mask_token_id", None)):
        if known is not None:
            return int(known)
    raise PolicyError(
        "neither tokenizer nor model config say which token masks a place",
        where=spec.name,
        hint="model.mask_token_id=ID, as the model's card says",
    )
