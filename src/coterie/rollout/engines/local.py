"""Our own engine, on any transformers causal LM: each prompt encoded once, its cache forked to its samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.errors import PolicyError
from coterie.rollout.engines.base import Generation, Request
from coterie.rollout.engines.decode import DecodeState
from coterie.rollout.engines.sampling import draw, uniform, widen
from coterie.rollout.engines.stops import StopStrings, stop_ids
from coterie.rollouts import Sampling

_WORTH_DROPPING = 8
"""Finished rows leave the batch once they are an eighth of it: dropping copies the cache about as a step does."""


@dataclass
class _Rows:
    """What the rows of one call need, a tensor a field, [B]; and the buffers they fill, [B,T]."""

    seeds: Tensor
    spec: Tensor
    limit: Tensor
    tokens: Tensor
    mask: Tensor
    logp: Tensor
    stopped: Tensor
    entropy: Tensor | None


class LocalEngine:
    """Samples from a transformers model, capturing log-probs (and entropies) of the distribution sampled from.

    Sampling is counter-based (see `sampling.uniform`): a seed gives the same tokens whatever else is in the batch, up
    to the last bits of the logits, which depend on batch shape in floating point. At most `max_rows` rows and
    `max_cache_tokens` cached tokens are decoded at a time; the rest wait for the next wave. `forbid` are token ids that
    are never sampled (media placeholders, say); they leave the support, so scoring must leave them out too.
    `context` bounds prompt plus completion and defaults to the model's `max_position_embeddings`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_rows: int = 512,
        max_cache_tokens: int = 2**18,
        forbid: Sequence[int] = (),
        context: int | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_rows, self.max_cache_tokens = max_rows, max_cache_tokens
        self.forbid = tuple(forbid)
        self.context = context or getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.stop_ids = stop_ids(model, tokenizer)

    def generate(self, requests: Sequence[Request], *, entropy: bool = False) -> Generation:
        """Complete every request; rows come in order of request, then seed. Runs in eval mode, restores the mode."""
        device = self.model.device
        prompts: dict[tuple[int, ...], list[int]] = {}
        specs: dict[Sampling, int] = {}
        seeds: list[int] = []
        spec: list[int] = []
        limit: list[int] = []
        for request in requests:
            room = self._room(request)
            first = len(seeds)
            seeds += request.seeds
            spec += [specs.setdefault(request.sampling, len(specs))] * len(request.seeds)
            limit += [room] * len(request.seeds)
            prompts.setdefault(tuple(request.prompt), []).extend(range(first, len(seeds)))
        if not seeds:
            raise PolicyError("nothing to generate: no request has a seed", where="LocalEngine")
        # Allocated outside inference mode: an inference tensor could not be used in a backward pass later.
        shape = (len(seeds), max(limit))
        rows = _Rows(
            torch.tensor(seeds, dtype=torch.int64, device=device),
            torch.tensor(spec, device=device),
            torch.tensor(limit, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
            torch.zeros(shape, dtype=torch.bool, device=device),
            torch.zeros(shape, dtype=_float(self.model.dtype), device=device),
            torch.zeros(len(seeds), dtype=torch.bool, device=device),
            torch.zeros(shape, dtype=_float(self.model.dtype), device=device) if entropy else None,
        )
        with torch.inference_mode(), evaluating(self.model):
            for batch, wave in self._batches(prompts, limit):
                state = DecodeState.prefill(self.model, batch, device)
                owner = [i for i, prompt in enumerate(batch) for _ in prompts[prompt]]
                members = [row for prompt in batch for row in prompts[prompt]]
                for start in range(0, len(members), wave):
                    part = slice(start, start + wave)
                    forked = state.fork(torch.tensor(owner[part], device=device))
                    self._decode(forked, torch.tensor(members[part], device=device), rows, list(specs))
        if rows.logp.isnan().any():
            raise PolicyError(
                "the model's logits are not numbers (NaN)",
                where="LocalEngine",
                hint="its weights diverged or overflow their dtype: lower the learning rate, go back to a checkpoint",
            )
        width = int(rows.mask.any(0).sum())
        return Generation(
            rows.tokens[:, :width].clone(),
            rows.mask[:, :width].clone(),
            rows.logp[:, :width].clone(),
            ~rows.stopped,
            None if rows.entropy is None else rows.entropy[:, :width].clone(),
        )

    def _room(self, request: Request) -> int:
        """How many tokens the request may get: its budget, or what is left of the context."""
        if not request.prompt:
            raise PolicyError("an empty prompt cannot be completed", where="LocalEngine", hint="start it with BOS")
        if request.sampling.max_tokens < 1:
            raise PolicyError(f"max_tokens must be at least 1, got {request.sampling.max_tokens}", where="sampling")
        if self.context is None:
            return request.sampling.max_tokens
        left = self.context - len(request.prompt)
        if left < 1:
            raise PolicyError(
                f"a prompt of {len(request.prompt)} tokens fills the model's context of {self.context}",
                where="LocalEngine",
                hint="shorten or filter prompts, or use a model with a longer context",
            )
        return min(request.sampling.max_tokens, left)

    def _batches(
        self, prompts: dict[tuple[int, ...], list[int]], limit: list[int]
    ) -> Iterator[tuple[list[tuple[int, ...]], int]]:
        """Split prompts into prefill batches within the bounds, short ones first (less padding), with a wave size."""
        batch: list[tuple[int, ...]] = []
        count, budget = 0, 0
        for prompt in sorted(prompts, key=len):
            members = prompts[prompt]
            tallest = max(budget, max(limit[i] for i in members))
            fits = min(self.max_rows, self.max_cache_tokens // (len(prompt) + tallest))
            if batch and count + len(members) > fits:
                yield batch, self._wave(len(batch[-1]) + budget)
                batch, count, tallest = [], 0, max(limit[i] for i in members)
            batch.append(prompt)
            count, budget = count + len(members), tallest
        yield batch, self._wave(len(batch[-1]) + budget)

    def _wave(self, tokens_per_row: int) -> int:
        return max(1, min(self.max_rows, self.max_cache_tokens // tokens_per_row))

    def _decode(self, state: DecodeState, ids: Tensor, rows: _Rows, specs: list[Sampling]) -> None:
        """Run rows `ids` of the call to their ends. `active` marks those of the batch that are not finished."""
        ends = torch.tensor(self.stop_ids, dtype=torch.int64, device=ids.device)
        stops = StopStrings(self.tokenizer, specs)
        active = torch.ones_like(ids, dtype=torch.bool)
        for t in range(int(rows.limit[ids].max())):
            tokens, logp, entropy = self._sample(state.logits, rows, ids, t, specs)
            live = ids[active]
            rows.tokens[live, t] = tokens[active]
            rows.mask[live, t] = True
            rows.logp[live, t] = logp[active]
            if rows.entropy is not None and entropy is not None:
                rows.entropy[live, t] = entropy[active]
            stopped = torch.isin(tokens, ends) & active
            if stops.any:
                stopped |= stops.hit(rows.tokens, rows.spec, ids, active & ~stopped, t)
            rows.stopped[ids[stopped]] = True
            active &= ~stopped & (rows.limit[ids] > t + 1)
            left = int(active.sum())
            if not left:
                return
            if (len(ids) - left) * _WORTH_DROPPING >= len(ids):
                kept = active.nonzero().squeeze(-1)
                state.keep(kept)
                ids, tokens, active = ids[kept], tokens[kept], active[kept]
            state.step(tokens)

    def _sample(
        self, logits: Tensor, rows: _Rows, ids: Tensor, t: int, specs: list[Sampling]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw position `t` of rows `ids`, one spec's rows at a time."""
        if self.forbid:
            logits = widen(logits).index_fill(-1, torch.tensor(self.forbid, device=logits.device), float("-inf"))
        uniforms = uniform(rows.seeds[ids], t)
        wanted = rows.entropy is not None
        if len(specs) == 1:
            return draw(logits, specs[0], uniforms, entropy=wanted)
        tokens, logp = torch.empty_like(ids), torch.empty(len(ids), dtype=rows.logp.dtype, device=ids.device)
        entropy = torch.empty_like(logp) if wanted else None
        for number, sampling in enumerate(specs):
            mine = (rows.spec[ids] == number).nonzero().squeeze(-1)
            if len(mine):
                tokens[mine], logp[mine], part = draw(logits[mine], sampling, uniforms[mine], entropy=wanted)
                if entropy is not None and part is not None:
                    entropy[mine] = part
        return tokens, logp, entropy


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode (no dropout) inside; every module's own mode restored after."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _float(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
