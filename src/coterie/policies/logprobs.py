"""Log-probs and entropies from hidden states, by a projection in chunks: the one primitive below every objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from coterie.policies.products import add_times, times
from coterie.rollout.engines.sampling import measure, truncate
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


@torch.no_grad()
def score_min_p(hidden: Tensor, head: Head, tokens: Tensor, sampling: Sampling, min_p: float, chunk: int) -> Tensor:
    """Log-prob of each token after those with less than min_p of the likeliest one's probability were cut and the rest
    renormalised; -inf where the token itself was cut. [N,H], [N] -> [N], without gradient, `chunk` rows at a time.
    """
    low = math.log(min_p) if min_p > 0 else -math.inf
    out = [torch.zeros(0, dtype=_result_dtype(hidden), device=hidden.device)]
    for states, ids in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
        logits = truncate(head(states), sampling, ids)
        kept = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + low, -math.inf)
        out.append(kept.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - kept.logsumexp(-1))
    return torch.cat(out)


def score_shown(
    hidden: Tensor, shown: Tensor, head: Head, tokens: Tensor, sampling: Sampling, chunk: int
) -> tuple[Tensor, Tensor]:
    """KL from the distribution of `hidden` to that of `shown`, which is detached, and the latter's entropy. [N,H] twice
    -> [N] twice

    Exact, over the vocabulary. The first distribution is the one sampled from; the second has its temperature alone, so
    that it gives everything a probability. `chunk` rows of logits at a time, made again in the backward pass.
    """
    full = Sampling(temperature=sampling.temperature)

    def part(states: Tensor, others: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        own = truncate(head(states), sampling, ids).log_softmax(-1)
        with torch.no_grad():
            other = truncate(head(others), full).log_softmax(-1)
        entropy = -(other.exp() * other.masked_fill(other == -math.inf, 0.0)).sum(-1)
        cut = own == -math.inf
        gap = own.masked_fill(cut, 0.0) - other.masked_fill(cut, 0.0)
        return (own.exp() * gap).sum(-1), entropy

    again = torch.is_grad_enabled() and len(hidden) > chunk
    parts = [
        checkpoint(part, *each, use_reentrant=False, preserve_rng_state=False) if again else part(*each)
        for each in zip(hidden.split(chunk), shown.split(chunk), tokens.split(chunk), strict=True)
    ]
    return torch.cat([kl for kl, _ in parts]), torch.cat([entropy for _, entropy in parts])


@torch.no_grad()
def score_curvature(hidden: Tensor, head: Head, tokens: Tensor, sampling: Sampling, chunk: int) -> dict[str, Tensor]:
    """How a step on one decision's log-prob at the output layer acts on it (arXiv:2510.00819). [N,H], [N] -> [N] each

    With h the hidden state over the temperature, p the probabilities and v = one-hot - p: hidden_square |h|^2,
    score_square |v|^2, score_variance sum p v^2 - (sum p v)^2. Without gradient, `chunk` rows of logits at a time.
    """
    none = torch.zeros(0, dtype=_result_dtype(hidden), device=hidden.device)
    square, variance = [none], [none]
    for states, ids in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
        probs = truncate(head(states), sampling, ids).softmax(-1)
        v = (-probs).scatter_add_(-1, ids.unsqueeze(-1), torch.ones_like(probs[:, :1]))
        square.append((v * v).sum(-1))
        centred = v - (probs * v).sum(-1, keepdim=True)
        variance.append((probs * centred * centred).sum(-1))
    norm = (hidden.to(none.dtype) / (sampling.temperature or 1.0)).square().sum(-1)
    return {"hidden_square": norm, "score_square": torch.cat(square), "score_variance": torch.cat(variance)}


def _result_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


_FORBIDDEN = -1e30
"""A logit whose probability is exactly 0, and finite, so that 0 log 0 is 0 without a special case."""


def kept_logits(device: torch.device) -> int:
    """Most logits kept for the backward pass: above this they are made again. 2^25 are 128 MiB in float32."""
    return 2**25 if device.type == "cpu" else 2**28


def score_linear(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    sampling: Sampling,
    want: Collection[str] = ("logp", "entropy"),
    forbid: Sequence[int] = (),
) -> dict[str, Tensor]:
    """`score_hidden` for a head that is a matrix product alone: hidden [N,H], weight [V,H] -> {"logp", "entropy"} [N].

    The gradients are written out, d logp_c / d z_v = [v=c] - p_v and d entropy / d z_v = -p_v (log p_v + entropy), and
    go through each chunk of logits once, in place. `sampling` must not truncate. `forbid` are tokens with probability
    0. Logits are kept for the backward pass while all of them are few, else made again. Differentiable once.
    """
    temperature = sampling.temperature or 1.0
    banned = torch.tensor(tuple(forbid), dtype=torch.long, device=hidden.device)
    logp, entropy = _ScoreLinear.apply(hidden, weight, tokens, temperature, banned, "entropy" in want)
    return {name: {"logp": logp, "entropy": entropy}[name] for name in want}


class _ScoreLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, banned: Tensor, entropic: bool
    ) -> tuple[Tensor, Tensor]:
        rows = max(64, rows_per_chunk(len(weight), hidden.device) // 4)
        parts = list(zip(hidden.split(rows), tokens.split(rows), strict=True)) if len(hidden) else []
        keep = any(ctx.needs_input_grad[:2]) and hidden.shape[0] * len(weight) <= kept_logits(hidden.device)
        logp = hidden.new_empty(len(hidden), dtype=_result_dtype(hidden))
        sums, entropy, kept = torch.empty_like(logp), torch.zeros_like(logp), []
        for number, (states, ids) in enumerate(parts):
            at = slice(number * rows, number * rows + len(ids))
            logits = _logits(states, weight, temperature, banned)
            sums[at] = logits.logsumexp(-1)
            logp[at] = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - sums[at]
            if entropic:
                probs = (logits - sums[at].unsqueeze(-1)).exp_()
                entropy[at] = sums[at] - probs.mul_(logits).sum(-1)
            if keep:
                kept.append(logits)
        ctx.save_for_backward(hidden, weight, tokens, banned, sums, entropy, *kept)
        ctx.temperature, ctx.rows, ctx.entropic = temperature, rows, entropic
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogp: Tensor, dentropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, tokens, banned, sums, entropy, *kept = ctx.saved_tensors
        dhidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Chunks are summed in float32: in bfloat16 a long sum would lose its small terms.
        dweight = weight.new_zeros(weight.shape, dtype=sums.dtype) if ctx.needs_input_grad[1] else None
        for number, states in enumerate(hidden.split(ctx.rows) if len(hidden) else ()):
            at = slice(number * ctx.rows, number * ctx.rows + len(states))
            logits = kept[number] if kept else _logits(states, weight, ctx.temperature, banned)
            logps = logits - sums[at].unsqueeze(-1)
            up = dlogp[at].unsqueeze(-1) / ctx.temperature
            if ctx.entropic:
                side = dentropy[at].unsqueeze(-1) / ctx.temperature
                slope = (logps + entropy[at].unsqueeze(-1)).mul_(side).add_(up).neg_()
                slope.mul_(logps.exp_())
            else:
                slope = logps.exp_().mul_(-up)
            slope.scatter_add_(-1, tokens[at].unsqueeze(-1), up)
            slope = slope.to(hidden.dtype)
            if dhidden is not None and slope.dtype == torch.bfloat16:
                dhidden[at] = times(slope, weight.T)
            elif dhidden is not None:
                torch.mm(slope, weight, out=dhidden[at])
            if dweight is not None:
                dweight = add_times(dweight, slope, states)
        return dhidden, None if dweight is None else dweight.to(weight.dtype), None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, temperature: float, banned: Tensor) -> Tensor:
    """In float32, over the temperature. (.to copies only a half-precision product)"""
    made = times(hidden, weight) if hidden.dtype == torch.bfloat16 else hidden @ weight.T
    logits = made.to(_result_dtype(hidden))
    if temperature != 1.0:
        logits /= temperature
    return logits.index_fill_(-1, banned, _FORBIDDEN) if len(banned) else logits
