"""Log-probs and entropies from hidden states, by a projection in chunks: the one primitive below every objective."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from coterie.rollout.engines.sampling import measure
from coterie.rollouts import Sampling

Head = Callable[[Tensor], Tensor]


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """How many rows of logits to hold at once: 2^23 values on CPU (32 MiB in float32), 2^26 on an accelerator."""
    return max(1, (2**23 if device.type == "cpu" else 2**26) // vocabulary)


def score_hidden(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    sampling: Sampling,
    want: Collection[str] = ("logp", "entropy"),
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Log-prob of each token and entropy of each distribution: hidden [N,H], tokens [N] -> {"logp", "entropy"} of [N].

    `head` maps [n,H] to logits [n,V]. The logits are made `chunk` rows at a time and, when there is more than one chunk
    and gradients are on, made again in the backward pass, so no [N,V] tensor ever exists (nor a float32 copy of one).
    With a single chunk nothing is recomputed. Results are float32, float64 where `hidden` is; both carry gradient.
    The entropy is that of the distribution sampled from: same temperature, same support.
    """
    if not len(hidden):
        empty = hidden.sum() * torch.zeros(0, dtype=_result_dtype(hidden), device=hidden.device)
        return {name: empty for name in want}
    if chunk is None:
        with torch.no_grad():
            chunk = rows_per_chunk(head(hidden[:1]).shape[-1], hidden.device)

    def part(states: Tensor, ids: Tensor) -> dict[str, Tensor]:
        return measure(head(states), ids, sampling, want)

    if len(hidden) <= chunk:
        return part(hidden, tokens)
    pieces = [
        checkpoint(part, states, ids, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else part(states, ids)
        for states, ids in zip(hidden.split(chunk), tokens.split(chunk), strict=True)
    ]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in want}


def _result_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32
