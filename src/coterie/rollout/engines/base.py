"""What a rollout strategy may ask of an engine, whichever it is (ours, vLLM, an HTTP endpoint)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from coterie.errors import PolicyError
from coterie.rollouts import Sampling


@dataclass(frozen=True)
class Request:
    """Complete one prompt several times: one sample a seed. A seed fixes its sample whatever else is in the batch."""

    prompt: tuple[int, ...]
    seeds: tuple[int, ...]
    sampling: Sampling


@dataclass
class Generation:
    """Rows in order of request, then seed. Right-padded; `mask` marks sampled tokens (the stop token included)."""

    tokens: Tensor
    """[B,T] int64"""
    mask: Tensor
    """[B,T] bool"""
    logp: Tensor
    """[B,T] float32, captured while sampling under the request's sampling spec; 0 where masked"""
    truncated: Tensor
    """[B] bool: ran out of max_tokens (or of context) before stopping by itself"""
    entropy: Tensor | None = None
    """[B,T] float32, when asked for"""
    ended: Tensor | None = None
    """[B] bool, when asked to come back early: stopped by itself or out of budget; the others could go on"""


class Progress(NamedTuple):
    """How far a call has come. Buffers are the engine's own: read them, do not keep them."""

    ended: Tensor
    """[B] bool"""
    tokens: Tensor
    """[B,T]"""
    mask: Tensor
    """[B,T] bool"""


Until = Callable[[Progress], bool]
"""Called before each step; whether the engine may come back. It then leaves rows that have not ended as they are."""


class Engine(Protocol):
    exact: bool
    """Whether its log-probs are the trainer's own, up to rounding: the weights that are trained, in their precision.
    Where they are not, the update corrects for that (see `coterie.mismatch`)."""

    def generate(
        self, requests: Sequence[Request], *, entropy: bool = False, until: Until | None = None
    ) -> Generation: ...


def room_for(request: Request, context: int | None) -> int:
    """How many tokens a request may get: its budget, or what is left of the context."""
    if not request.prompt:
        raise PolicyError("an empty prompt cannot be completed", where="the engine", hint="start it with BOS")
    if request.sampling.max_tokens < 1:
        raise PolicyError(f"max_tokens must be at least 1, got {request.sampling.max_tokens}", where="sampling")
    if context is None:
        return request.sampling.max_tokens
    left = context - len(request.prompt)
    if left < 1:
        raise PolicyError(
            f"a prompt of {len(request.prompt)} tokens fills the model's context of {context}",
            where="the engine",
            hint="shorten or filter prompts, or use a model with a longer context",
        )
    return min(request.sampling.max_tokens, left)
