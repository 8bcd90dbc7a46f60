"""Drawing tokens from logits, and the log-probabilities of what was drawn. Scoring uses the same functions.

Every function here takes logits [N,V] of one chunk and one `Sampling` spec. Arithmetic is float32, or float64 when the
logits are: half-precision logits are widened first, because a log-prob in bfloat16 has no digits to compare.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from coterie.native import cut as native_cut
from coterie.native import draw as native
from coterie.rollouts import Sampling

_DRAW_ELEMENTS = 2**24
"""Most float64 probabilities `draw` holds at once (128 MiB)."""


def widen(logits: Tensor) -> Tensor:
    """Logits in float32, or unchanged where they are float64 already."""
    return logits if logits.dtype == torch.float64 else logits.float()


def truncate(logits: Tensor, sampling: Sampling, keep: Tensor | None = None) -> Tensor:
    """Logits of the distribution that is sampled from. [N,V] -> [N,V], float32 (float64 stays); differentiable.

    Temperature, then top-k, top-p and min-p in that order, each on what the one before left (the order of
    transformers). Ties at the top-k boundary all stay. What is cut becomes -inf. `keep` [N] names one token a row
    that always stays in the support: when scoring, rounding may put a token that was sampled on the far side of a cut,
    and its log-prob must be finite. At `temperature=0` (greedy) the logits come back unscaled and uncut.
    """
    logits = widen(logits)
    if sampling.temperature == 0.0:
        return logits
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    if not sampling.truncates:
        return logits
    cut = _cut(logits.detach(), sampling)
    if keep is not None:
        cut.scatter_(-1, keep.unsqueeze(-1), False)
    return logits.masked_fill(cut, -math.inf)


def _cut(logits: Tensor, sampling: Sampling) -> Tensor:
    """[N,V] bool: what top-k, top-p and min-p remove."""
    if native_cut.suits(logits):
        return native_cut.cut(logits, sampling.top_k, sampling.top_p, sampling.min_p)
    cut = torch.zeros_like(logits, dtype=torch.bool)
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        cut = logits < kth
    if sampling.top_p < 1.0:
        descending, order = logits.masked_fill(cut, -math.inf).sort(dim=-1, descending=True, stable=True)
        probs = descending.softmax(-1)
        before = probs.cumsum(-1) - probs  # mass strictly ahead of a token: the first token always stays
        cut = cut | torch.zeros_like(cut).scatter_(-1, order, before >= sampling.top_p)
    if sampling.min_p > 0.0:
        cut = cut | (logits < logits.max(-1, keepdim=True).values + math.log(sampling.min_p))
    return cut


def measure(logits: Tensor, tokens: Tensor, sampling: Sampling, want: Collection[str]) -> dict[str, Tensor]:
    """{"logp", "entropy"} [N] as wanted: log-prob of `tokens` [N], entropy (nats) of the distribution sampled from."""
    logps = truncate(logits, sampling, tokens).log_softmax(-1)
    out = {}
    if "logp" in want:
        out["logp"] = logps.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    if "entropy" in want:
        out["entropy"] = _entropy(logps)
    return out


def log_probs_of(logits: Tensor, tokens: Tensor, sampling: Sampling) -> Tensor:
    """Log-prob of `tokens` [N] under the distribution that `sampling` makes of `logits` [N,V]. -> [N]"""
    return measure(logits, tokens, sampling, ("logp",))["logp"]


def _entropy(logps: Tensor) -> Tensor:
    """[N,V] log-probs (-inf allowed) -> [N]. 0 log 0 is 0, in the value and in the gradient."""
    finite = logps.masked_fill(logps == -math.inf, 0.0)
    return -(logps.exp() * finite).sum(-1)


def draw(
    logits: Tensor, sampling: Sampling, uniforms: Tensor, *, entropy: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One token a row by inverse CDF in float64: logits [N,V], uniforms [N] in [0,1) -> tokens, logp, entropy [N].

    The token is the first whose cumulative probability exceeds the uniform, so a token of probability zero is never
    returned, whatever the uniform. `temperature=0` is argmax; its log-prob is at temperature 1 over the full support.
    """
    rows = max(1, _DRAW_ELEMENTS // logits.shape[-1])
    if logits.shape[0] <= rows:
        return _draw(logits, sampling, uniforms, entropy)
    chunks = zip(logits.split(rows), uniforms.split(rows), strict=True)
    tokens, logp, ents = zip(*(_draw(chunk, sampling, u, entropy) for chunk, u in chunks), strict=True)
    return torch.cat(tokens), torch.cat(logp), torch.cat(ents) if entropy else None


def _draw(logits: Tensor, sampling: Sampling, uniforms: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    if native.suits(logits):
        if not sampling.truncates or sampling.temperature == 0.0:
            return native.draw(logits, sampling.temperature, uniforms, entropy)
        return native.draw(truncate(logits, sampling), 1.0, uniforms, entropy)
    logps = truncate(logits, sampling).log_softmax(-1)
    if sampling.temperature == 0.0:
        tokens = logps.argmax(-1)
    else:
        cdf = logps.double().exp().cumsum(-1)
        total = cdf[:, -1]
        below = torch.nextafter(total, torch.zeros_like(total))  # u * total may round up to total itself
        threshold = torch.minimum(uniforms.to(cdf) * total, below)
        tokens = torch.searchsorted(cdf, threshold.unsqueeze(-1), right=True).squeeze(-1)
        tokens = tokens.clamp_max(cdf.shape[-1] - 1)  # NaN logits only: the log-prob is NaN then, and callers refuse it
    logp = logps.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return tokens, logp, _entropy(logps) if entropy else None


def _signed(word: int) -> int:
    """A 64-bit constant as the int64 of the same bits."""
    return word - (1 << 64) if word >= 1 << 63 else word


GAMMA, _MIX1, _MIX2 = (_signed(w) for w in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea & Flood, OOPSLA 2014); int64 products wrap as uint64 ones do."""
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    return z ^ _shift(z, 31)


def uniform(seeds: Tensor, position: int | Tensor) -> Tensor:
    """A counter-based random number: (seed, position) -> float64 in [0,1) with 53 bits. seeds [N] int64 -> [N].

    There is no state: a sample depends on its own seed and position alone, never on what else is in the batch, on the
    device, or on how many numbers were drawn before. Two rounds of splitmix64, so that neighbouring seeds and
    neighbouring positions are unrelated.
    """
    counter = torch.as_tensor(position, dtype=torch.int64, device=seeds.device) + 1
    z = mix(mix(seeds + GAMMA) + counter * GAMMA)
    return _shift(z, 11).double() * 2.0**-53
