"""Our attention in the place of a transformers model's own, through transformers' attention interface.

Everything else of the model (embeddings, norms, projections, RoPE, MLP) stays transformers' own code, adapters
included. The training forward on groups that share a prompt and the local engine's decoding both work this way.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from typing import Any, NamedTuple, Protocol

from torch import Tensor

NAME = "coterie"
"""Under this name transformers finds our attention, and, as no mask function goes by it, makes no mask."""


class Rule(NamedTuple):
    """What an architecture does to scores: a factor, a sliding window, a soft cap (arXiv:2408.00118)."""

    scaling: float
    window: int | None = None
    softcap: float | None = None
    asked: Tensor | None = None
    """The tokens whose queries are answered, bool [L]; what is found for others is anything. None: all."""


class Attention(Protocol):
    """Attention of tokens that stand in one row without padding: q [L,H,D], k [L,K,D], v [L,K,E] -> [L,H,E].

    K divides H. `layer` counts from 0.
    """

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor: ...


_current: ContextVar[Attention] = ContextVar("attention")


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: query [1,H,L,D], key and value [1,K,L,D] -> [1,L,H,D]."""
    rule = Rule(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return _current.get()(module.layer_idx, q, k, v, rule).unsqueeze(0), None


class attending(AbstractContextManager[None]):
    """Attention by `attention` inside; may be entered again and again, as recomputing a checkpointed layer does."""

    def __init__(self, config: Any, attention: Attention) -> None:
        self.config, self.attention = config, attention
        self.before: list[tuple[str | None, Token[Attention]]] = []

    def __enter__(self) -> None:
        self.before.append((self.config._attn_implementation, _current.set(self.attention)))
        self.config._attn_implementation = NAME

    def __exit__(self, *_: object) -> None:
        name, token = self.before.pop()
        self.config._attn_implementation = name
        _current.reset(token)


def current() -> Attention | None:
    """What attends at this moment, if anything of ours does."""
    return _current.get(None)


def register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
