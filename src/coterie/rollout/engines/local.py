"""Our own engine, on any transformers causal LM: each prompt encoded once, its samples decoded together."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from coterie.errors import PolicyError
from coterie.policies import replay
from coterie.policies.replay import Kept, Replay
from coterie.policies.shared_prefix import SharedPrefix
from coterie.rollout.engines.base import Generation, Progress, Request, Until, room_for
from coterie.rollout.engines.compiled import CompiledLayers, compilable
from coterie.rollout.engines.decoder import CachedDecoder, SharedDecoder
from coterie.rollout.engines.memory import Memory
from coterie.rollout.engines.sampling import draw, uniform, widen
from coterie.rollout.engines.stops import StopStrings, stop_ids
from coterie.rollouts import Sampling

_WORTH_MOVING = 8
"""Finished rows leave their cohort, and waiting ones are let in, once they are an eighth of it or of the batch: moving
rows costs about as much as a step does."""
_AT_ONCE = 2**20
"""Random numbers that are made before they are needed, at the most."""


@dataclass
class _Call:
    """What the rows of one call need, a tensor a field, [B]; and the buffers they fill: the lines of a grid [B,T] one
    after the other, and a place for what nobody needs."""

    specs: list[Sampling]
    ends: Tensor
    stops: StopStrings
    seeds: Tensor
    spec: Tensor
    limit: Tensor
    width: int
    tokens: Tensor
    mask: Tensor
    logp: Tensor
    stopped: Tensor
    """At the tokens after which nothing follows."""
    entropy: Tensor | None
    ended: Tensor
    """[B]"""
    forbidden: Tensor
    uniforms: Tensor | None
    """One a place of the grid, where they are few enough to be made at once."""

    def grid(self, buffer: Tensor) -> Tensor:
        """[B,T]"""
        return buffer[:-1].view(-1, self.width)


@dataclass
class _Waiting:
    """A prompt and the rows of the call that are still to complete it. Once some of them were let in, `encoded` is the
    state that holds the prompt, and its place there."""

    prompt: tuple[int, ...]
    rows: list[int]
    limit: int
    encoded: tuple[Any, int] | None = None


@dataclass
class _Cohort:
    """Rows decoded side by side: which rows of the call they are [n], which of them go on [n], what they took last [n]
    and how many tokens they have [n]."""

    state: Any
    rows: Tensor
    active: Tensor
    tokens: Tensor
    taken: Tensor
    limit: int

    @property
    def cost(self) -> int:
        return int(self.state.held) + len(self.rows) * self.limit

    def joined(self, other: _Cohort, state: Any) -> _Cohort:
        """This one's rows, then the other's; `state` is that of all of them."""
        return _Cohort(
            state,
            torch.cat([self.rows, other.rows]),
            torch.cat([self.active, other.active]),
            torch.cat([self.tokens, other.tokens]),
            torch.cat([self.taken, other.taken]),
            max(self.limit, other.limit),
        )

    def drop_finished(self) -> None:
        left = int(self.active.sum())
        if not left or (len(self.rows) - left) * _WORTH_MOVING >= len(self.rows):
            kept = self.active.nonzero().squeeze(-1)
            self.rows, self.tokens, self.active = self.rows[kept], self.tokens[kept], self.active[kept]
            self.taken = self.taken[kept]
            if left:
                self.state.keep(kept)


class LocalEngine:
    """Samples from a transformers model, capturing log-probs (and entropies) of the distribution sampled from.

    Sampling is counter-based (see `sampling.uniform`): a seed gives the same tokens whatever else is in the batch, up
    to the last bits of the logits, which depend on batch shape in floating point. At most `max_rows` rows and
    `max_cache_tokens` cached tokens are decoded at a time; the rest wait in a queue and take the place of rows that
    finish (continuous batching). With `shared`, where the model allows it, a prompt's keys and values are kept once for
    all its samples. `forbid` are token ids that
    are never sampled (media placeholders, say); they leave the support, so scoring must leave them out too.
    Its log-probs are the trainer's own (`exact`) if `model` is what is trained.
    `compiled` runs the layers of a model built like Llama through torch.compile while decoding, which costs the first
    call its compilation; a PolicyError says where that cannot be. `kept` takes what the model's products gave, for the
    first update (see `coterie.policies.replay`).
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
        shared: SharedPrefix | None = None,
        compiled: bool = False,
        kept: Kept | None = None,
    ) -> None:
        self.exact = True
        self.model, self.tokenizer = model, tokenizer
        self.shares_prefix = shared is not None and shared.exact
        layers = CompiledLayers(compilable(shared)) if compiled else None
        self.decoder: Any = CachedDecoder(model)
        if shared is not None and shared.exact:
            self.decoder = SharedDecoder(shared, layers)
        self.max_rows, self.max_cache_tokens = max_rows, max_cache_tokens
        self.forbid = tuple(forbid)
        self.context = context or getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.stop_ids = stop_ids(model, tokenizer)
        self.kept = kept

    def _replay(self, prompts: Collection[tuple[int, ...]], rows: int, longest: int) -> Replay | None:
        """Room for the products of a call's tokens."""
        llama = self.decoder.shared.llama if self.shares_prefix else None
        if self.kept is None or llama is None or llama.hooked or self.decoder.memory is not None:
            return None
        if isinstance(self.decoder.layers, CompiledLayers):  # inside a compiled function nothing is kept
            return None
        return self.kept.room(llama, sum(map(len, prompts)), rows, longest - 1)

    def remember(self) -> Memory:
        """From now until it is closed, a prompt that begins with one of the last call's is encoded from there on."""
        self.decoder.memory = Memory(self.max_cache_tokens)
        return self.decoder.memory

    def generate(self, requests: Sequence[Request], *, entropy: bool = False, until: Until | None = None) -> Generation:
        """Complete every request, or as many as `until` asks for; rows come in order of request, then seed.

        Runs in eval mode, restores the mode.
        """
        device = self.model.device
        if self.decoder.memory is not None:
            self.decoder.memory.next_call()
        prompts: dict[tuple[int, ...], list[int]] = {}
        specs: dict[Sampling, int] = {}
        seeds: list[int] = []
        spec: list[int] = []
        limit: list[int] = []
        for request in requests:
            size = room_for(request, self.context)
            first = len(seeds)
            seeds += request.seeds
            drawn_by = replace(request.sampling, max_tokens=0)  # budgets are kept a row, so they make no spec
            spec += [specs.setdefault(drawn_by, len(specs))] * len(request.seeds)
            limit += [size] * len(request.seeds)
            prompts.setdefault(tuple(request.prompt), []).extend(range(first, len(seeds)))
        if not seeds:
            raise PolicyError("nothing to generate: no request has a seed", where="LocalEngine")
        # Allocated outside inference mode: an inference tensor could not be used in a backward pass later.
        count, width, dtype = len(seeds), max(limit), _float(self.model.dtype)
        places = count * width + 1
        call = _Call(
            list(specs),
            torch.tensor(self.stop_ids, dtype=torch.int64, device=device),
            StopStrings(self.tokenizer, list(specs)),
            torch.tensor(seeds, dtype=torch.int64, device=device),
            torch.tensor(spec, device=device),
            torch.tensor(limit, device=device),
            width,
            torch.zeros(places, dtype=torch.int64, device=device),
            torch.zeros(places, dtype=torch.bool, device=device),
            torch.zeros(places, dtype=dtype, device=device),
            torch.zeros(places, dtype=torch.bool, device=device),
            torch.zeros(places, dtype=dtype, device=device) if entropy else None,
            torch.zeros(count, dtype=torch.bool, device=device),
            torch.tensor(self.forbid, dtype=torch.int64, device=device),
            None,
        )
        if places <= _AT_ONCE:
            call.uniforms = uniform(call.seeds.unsqueeze(-1), torch.arange(width, device=device)).flatten()
        kept = self._replay(prompts, count, width)
        with torch.inference_mode(), evaluating(self.model), nullcontext() if kept is None else kept.writing():
            waiting = [_Waiting(p, rows, max(limit[i] for i in rows)) for p, rows in prompts.items()]
            # Similar lengths come in side by side, and side by side they need little padding.
            self._run(deque(sorted(waiting, key=lambda w: len(w.prompt))), call, until)
        tokens, mask, logp = (call.grid(x) for x in (call.tokens, call.mask, call.logp))
        if self.kept is not None and kept is not None:
            kept.finish(prompts, tokens, mask.sum(-1))
            self.kept.calls.append(kept)
        if logp.isnan().any():
            raise PolicyError(
                "the model's logits are not numbers (NaN)",
                where="LocalEngine",
                hint="its weights diverged or overflow their dtype: lower the learning rate, go back to a checkpoint",
            )
        used = int(mask.any(0).sum())
        return Generation(
            tokens[:, :used].clone(),
            mask[:, :used].clone(),
            logp[:, :used].clone(),
            ~call.grid(call.stopped).any(-1),
            None if call.entropy is None else call.grid(call.entropy)[:, :used].clone(),
            None if until is None else call.ended,
        )

    def _run(self, queue: deque[_Waiting], call: _Call, until: Until | None) -> None:
        """Decode until nobody waits and every row has ended, or enough have."""
        cohorts: list[_Cohort] = []
        progress = Progress(call.ended, call.grid(call.tokens), call.grid(call.mask))
        while (queue or cohorts) and not (until is not None and until(progress)):
            admitted = self._admit(queue, cohorts, call)
            if cohorts:
                if (kept := replay.current()) is not None:
                    kept.step(*(_cat([getattr(c, name) for c in cohorts]) for name in ("rows", "taken", "active")))
                self.decoder.step([c.state for c in cohorts], [c.tokens for c in cohorts])
            cohorts = self._join(cohorts + admitted)
            self._take(cohorts, call)
            for cohort in cohorts:
                cohort.drop_finished()
            cohorts = [c for c in cohorts if len(c.rows)]

    def _admit(self, queue: deque[_Waiting], cohorts: list[_Cohort], call: _Call) -> list[_Cohort]:
        """Let in as many rows as there is room for, once the room is worth it; prompts that are new are encoded."""
        room = self.max_rows - sum(len(c.rows) for c in cohorts)
        if not queue or (cohorts and room * _WORTH_MOVING < self.max_rows):
            return []
        tokens = self.max_cache_tokens - sum(c.cost for c in cohorts)
        known: list[tuple[_Waiting, list[int]]] = []
        fresh: list[tuple[_Waiting, list[int]]] = []
        while queue and room:
            first = queue[0]
            once, each = len(first.prompt), first.limit
            if not self.shares_prefix:
                once, each = 0, once + each
            fits = min(room, len(first.rows), (tokens - once) // each)
            if fits < 1 and (cohorts or known or fresh):
                break
            fits = max(fits, 1)  # with nobody else there, one row is let in whatever it needs
            (known if first.encoded else fresh).append((first, first.rows[:fits]))
            room, tokens, first.rows = room - fits, tokens - once - fits * each, first.rows[fits:]
            if first.rows:
                break
            queue.popleft()
        if fresh:
            state = self.decoder.prefill([w.prompt for w, _ in fresh])
            for i, (waiting, _) in enumerate(fresh):
                waiting.encoded = (state, i)
        return [self._cohort(part, call) for part in (known, fresh) if part]

    def _cohort(self, part: list[tuple[_Waiting, list[int]]], call: _Call) -> _Cohort:
        """The rows of prompts that one state holds."""
        states, places = zip(*(w.encoded for w, _ in part if w.encoded), strict=True)
        rows = torch.tensor([i for _, some in part for i in some], device=call.seeds.device)
        owner = [p for p, (_, some) in zip(places, part, strict=True) for _ in some]
        limit = max(w.limit for w, _ in part)
        state = states[0].fork(torch.tensor(owner, device=rows.device), limit - 1)
        return _Cohort(state, rows, torch.ones_like(rows, dtype=torch.bool), rows, torch.zeros_like(rows), limit)

    def _join(self, cohorts: list[_Cohort]) -> list[_Cohort]:
        """Cohorts of which some have become one, so that attention is called once for them."""
        out: list[_Cohort] = []
        for cohort in cohorts:
            for i, before in enumerate(out):
                if (state := self.decoder.merge(before.state, cohort.state)) is not None:
                    out[i] = before.joined(cohort, state)
                    break
            else:
                out.append(cohort)
        return out

    def _take(self, cohorts: list[_Cohort], call: _Call) -> None:
        """One token for every row of every cohort, by one draw over all of them."""
        rows = _cat([c.rows for c in cohorts])
        place = _cat([c.taken for c in cohorts])
        active = _cat([c.active for c in cohorts])
        at = torch.where(active, rows * call.width + place, len(call.tokens) - 1)
        tokens, logp, entropy = self._sample(_cat([c.state.logits for c in cohorts]), call, rows, place, at)
        call.tokens[at], call.mask[at], call.logp[at] = tokens, active, logp
        if call.entropy is not None and entropy is not None:
            call.entropy[at] = entropy
        stopped = torch.isin(tokens, call.ends) & active
        sizes = [len(c.rows) for c in cohorts]
        if call.stops.any:
            stopped |= call.stops.hit(call.grid(call.tokens), call.spec, rows, active & ~stopped, place)
        call.stopped[at] = stopped
        going = active & ~stopped & (call.limit[rows] > place + 1)
        call.ended[rows[active & ~going]] = True
        for cohort, mine, ids in zip(cohorts, going.split(sizes), tokens.split(sizes), strict=True):
            cohort.active, cohort.tokens, cohort.taken = mine, ids, cohort.taken + 1

    def _sample(
        self, logits: Tensor, call: _Call, rows: Tensor, place: Tensor, at: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw position `place` of `rows`, which is `at` in the buffers, one spec's rows at a time."""
        if self.forbid:
            logits = widen(logits).index_fill(-1, call.forbidden, float("-inf"))
        if call.uniforms is None:
            uniforms = uniform(call.seeds[rows], place)
        else:
            uniforms = call.uniforms[at.clamp_max(len(call.uniforms) - 1)]
        wanted = call.entropy is not None
        if len(call.specs) == 1:
            return draw(logits, call.specs[0], uniforms, entropy=wanted)
        tokens, logp = torch.empty_like(rows), torch.empty(len(rows), dtype=call.logp.dtype, device=rows.device)
        entropy = torch.empty_like(logp) if wanted else None
        for number, sampling in enumerate(call.specs):
            mine = (call.spec[rows] == number).nonzero().squeeze(-1)
            if len(mine):
                tokens[mine], logp[mine], part = draw(logits[mine], sampling, uniforms[mine], entropy=wanted)
                if entropy is not None and part is not None:
                    entropy[mine] = part
        return tokens, logp, entropy


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode (no dropout) inside; every module's own mode restored after."""
    training, left = [], [model]
    while left:  # modules() is a generator in a generator for every level, and this is done for every forward pass
        module = left.pop()
        if module.training:
            training.append(module)
        left += [child for child in module._modules.values() if child is not None]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _float(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
