"""What ends a completion besides its budget: EOS ids and stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from coterie.policies.tokenizers import spell
from coterie.rollouts import Sampling


class StopStrings:
    """Finds stop strings in what was just decoded. Only rows whose spec has stops are looked at."""

    def __init__(self, tokenizer: Any, specs: Sequence[Sampling]) -> None:
        self.tokenizer = tokenizer
        self.stops = [spec.stop for spec in specs]
        self.any = any(self.stops)
        # A token that shows at all shows at least one byte, so a stop string spans at most its bytes in tokens; one
        # more, since some tokenizers strip the space in front of the first token they decode.
        self.tail = max((len(s.encode()) for stop in self.stops for s in stop), default=0) + 1

    def hit(self, tokens: Tensor, spec: Tensor, ids: Tensor, candidates: Tensor, at: Tensor) -> Tensor:
        """[n] bool: those of `candidates` [n] whose text (special tokens shown) completed a stop string at `at` [n].

        tokens [B,T] sampled so far and spec [B], the index of each row's sampling spec; ids [n] are the rows in play.
        """
        found = torch.zeros_like(candidates)
        places = candidates.nonzero().squeeze(-1)
        ends = at[places] + 1
        slots = (ends - self.tail).clamp_min(0).unsqueeze(-1) + torch.arange(self.tail, device=at.device)
        tails = tokens[ids[places].unsqueeze(-1), slots.clamp_max(tokens.shape[1] - 1)].tolist()
        sizes = (ends.clamp_max(self.tail)).tolist()
        specs = spec[ids[places]].tolist()
        which = [i for i, s in enumerate(specs) if self.stops[s]]
        if not which:
            return found
        texts = spell(self.tokenizer, [tails[i][: sizes[i]] for i in which], skip_special_tokens=False)
        ended = [i for i, text in zip(which, texts, strict=True) if any(s in text for s in self.stops[specs[i]])]
        found[places[ended]] = True
        return found


def stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every id that ends a completion: the tokenizer's EOS and those of the generation config."""
    config = getattr(model, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    ids = set(listed if isinstance(listed, list | tuple) else [listed]) | {tokenizer.eos_token_id}
    return tuple(sorted(i for i in ids if i is not None))
