"""The causal-LM policy: any transformers causal LM, whole or by adapters, that samples, scores, saves and loads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from coterie.columns import GROUPWISE
from coterie.errors import PolicyError
from coterie.policies import groupwise, shown, tokenizers
from coterie.policies.base import WHOLE, Part
from coterie.policies.loading import ModelSpec, load_model_and_tokenizer
from coterie.policies.logprobs import (
    rows_per_chunk,
    score_curvature,
    score_hidden,
    score_linear,
    score_min_p,
    score_shown,
)
from coterie.policies.packing import Twins, pack, pack_groups
from coterie.policies.replay import Kept, as_slice
from coterie.policies.shared_prefix import SharedPrefix
from coterie.policies.split import SplitModel
from coterie.policies.transformers_policy import TransformersPolicy
from coterie.reductions import group_sum
from coterie.rollout.engines.base import Generation, Progress, Request, Until
from coterie.rollout.engines.compiled import compilable
from coterie.rollout.engines.copied import CopiedEngine
from coterie.rollout.engines.local import LocalEngine, evaluating
from coterie.rollout.engines.memory import Memory
from coterie.rollout.engines.sampling import measure
from coterie.rollout.engines.vllm import VLLMEngine
from coterie.rollouts import Prompt, Rollouts, Sampling


class CausalLM(TransformersPolicy):
    """A policy whose decisions are tokens. Everything it returns is on `device`.

    `version` counts updates of the weights; the loop bumps it, and every sampled token carries it. Sampling and RL
    scoring run in eval mode: with dropout on, the ratio of a policy to itself would not be 1.
    """

    decisions = "tokens"
    lacks = {
        "preview_rewards": "a token foresees no whole sample",
        "step_std": "tokens are drawn without Gaussian noise",
        "step_size": "tokens have no noise level",
        "step_gain": "tokens have no velocity",
        "best_gap": "tokens have no velocity",
        "fine_gap": "tokens have no velocity",
        "kl_ref": "the term kl estimates it for tokens",
        "mean_gap": "tokens have no mean",
    }
    """Columns that it does not have, each with the reason."""

    def __init__(self, model: Any, tokenizer: Any, spec: ModelSpec) -> None:
        super().__init__(model, tokenizer, spec)
        with evaluating(model):
            self._split = SplitModel(model)
            self._shared = SharedPrefix(self._split) if spec.shared_prefix else None
        self.kept = Kept()
        self.engine = self._make_engine()
        if spec.gradient_checkpointing:
            settings: dict[str, Any] = {"use_reentrant": False}
            if self._shared is not None:
                settings["context_fn"] = self._shared.checkpoint_contexts
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
            for layer in self._checkpointed_layers():
                _disable_own_dropout(layer)

    def _make_engine(self) -> LocalEngine | CopiedEngine | VLLMEngine:
        context, compiled = _context(self.model, self.spec), self.spec.compile_decode
        if self.spec.engine == "vllm":
            return VLLMEngine(self.model, self.tokenizer, options=self.spec.vllm, context=context)

        def on_copy(twin: Any) -> LocalEngine:
            with evaluating(twin):
                shared = SharedPrefix(SplitModel(twin)) if self.spec.shared_prefix else None
            return LocalEngine(twin, self.tokenizer, context=context, shared=shared, compiled=compiled)

        dtype = getattr(torch, self.spec.sample_dtype) if self.spec.sample_dtype else self.model.dtype
        if dtype != self.model.dtype:
            if compiled:
                compilable(self._shared)  # the copy is made when it is first sampled from, and would say so then
            return CopiedEngine(self.model, dtype, on_copy, context)
        return LocalEngine(
            self.model, self.tokenizer, context=context, shared=self._shared, compiled=compiled, kept=self.kept
        )

    @classmethod
    def load(cls, spec: ModelSpec, *, tokenizer: Any = None) -> CausalLM:
        """Build or load what `spec` names. Raises PolicyError with the mend when it cannot."""
        return cls(*load_model_and_tokenizer(spec, tokenizer), spec)

    @property
    def shares_prefix(self) -> bool:
        """Whether scoring encodes the prompt of a group once, however many rollouts answer it."""
        return self._shared is not None and self._shared.exact and self._split.exact

    @property
    def exact(self) -> bool:
        """Whether the engine's log-probs are those that `score` gives, up to rounding."""
        return self.engine.exact

    def reply(self, prompt: Any, observation: Any, said: Sequence[int]) -> tuple[int, ...]:
        """Token ids of an observation after an action whose tokens end `said` (see `tokenizers.reply`)."""
        ended = bool(said) and said[-1] == self.tokenizer.eos_token_id
        return tokenizers.reply(self.tokenizer, prompt, observation, ended)

    # Sampling

    def generate(self, requests: Sequence[Request], *, entropy: bool = False, until: Until | None = None) -> Generation:
        """Complete requests with the engine."""
        return self.engine.generate(requests, entropy=entropy, until=until)

    def remember(self) -> Memory:
        """What episodes of many turns encode once a token: the engine's memory of the last prompts, until closed. Of an
        engine that keeps prompts by itself, nothing.
        """
        return self.engine.remember() if isinstance(self.engine, LocalEngine | CopiedEngine) else Memory(0)

    def rollout(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        entropy: bool = False,
        ended: Callable[[int, str], None] | None = None,
    ) -> Rollouts:
        """One group a prompt, one rollout a seed: the table with everything the roll-out stage provides.

        `ended` is called with the number and text of a rollout as soon as it has ended, while others go on.
        """
        requests = [Request(p.tokens, tuple(s), sampling) for p, s in zip(prompts, seeds, strict=True)]
        until = None if ended is None else self._tell(ended, sampling)
        made = self.generate(requests, entropy=entropy, until=until)
        sizes = torch.tensor([len(s) for s in seeds], device=self.device)
        groups = torch.arange(len(prompts), device=self.device).repeat_interleave(sizes)
        lengths = made.mask.sum(-1)
        columns = {
            "groups": groups,
            "tokens": made.tokens,
            "mask": made.mask,
            "lengths": lengths,
            "truncated": made.truncated,
            "logp_old": made.logp,
            "version": torch.where(made.mask, self.version, 0),
            "prompt_index": torch.tensor([p.index for p in prompts], device=self.device)[groups],
        }
        if made.entropy is not None:
            columns["entropy_old"] = made.entropy
        rows = zip(made.tokens.tolist(), lengths.tolist(), strict=True)
        texts = tokenizers.decode(self.tokenizer, [ids[:n] for ids, n in rows], sampling.stop)
        return Rollouts(list(prompts), dict(columns), sampling, texts)

    def _tell(self, ended: Callable[[int, str], None], sampling: Sampling) -> Until:
        """For an engine: never come back early, but say which rollouts have ended since it last asked."""
        told: Tensor | None = None

        def until(progress: Progress) -> bool:
            nonlocal told
            new = progress.ended if told is None else progress.ended & ~told
            told = progress.ended.clone()
            for row in new.nonzero().flatten().tolist():
                ended(row, self.decode(progress.tokens[row][progress.mask[row]].tolist(), sampling.stop))
            return False

        return until

    # Scoring

    def score(self, rollouts: Rollouts, want: Collection[str] = ("logp",)) -> dict[str, Tensor]:
        """{"logp", "entropy"} [B,T] as wanted, of the decisions as `rollouts.sampling` drew them; 0 where masked.

        Also the columns of GROUPWISE, for groups that are whole, without gradient (see `coterie.policies.groupwise`).
        Differentiable when gradients are on. Float32 (float64 for a float64 model). All rows in one forward pass: the
        caller micro-batches. Raises PolicyError for greedy rollouts when gradients are on: their distribution is a
        point.
        """
        unknown = set(want) - {"logp", "entropy"} - GROUPWISE
        if unknown:
            known = ", ".join(["logp", "entropy", *sorted(GROUPWISE)])
            raise PolicyError(f"a causal LM provides {known}, not {', '.join(sorted(unknown))}", where="score")
        if rollouts.sampling.temperature == 0.0 and torch.is_grad_enabled():
            raise PolicyError(
                "rollouts sampled at temperature 0 cannot be trained on",
                where="rollout.temperature",
                hint="sample at a temperature above 0, or score under torch.no_grad()",
            )
        prompts = [p.tokens for p in rollouts.prompts]
        branch = rollouts["branch"] if "branch" in rollouts else None
        own, compared = set(want) - GROUPWISE, set(want) & GROUPWISE
        found: dict[str, Tensor] = {}
        with self.train_mode(dropout=False):
            if own:
                found = self._score(
                    prompts, rollouts["groups"], rollouts["tokens"], rollouts["mask"], rollouts.sampling, own, branch
                )
            return found | self._compare(rollouts, compared) if compared else found

    @torch.no_grad()
    def score_min_p(self, rollouts: Rollouts, min_p: float) -> Tensor:
        """Log-probs under the distribution without the tokens that min_p cuts, -inf where the decision's own was cut;
        0 where masked. [B,T], without gradient (see `coterie.policies.logprobs.score_min_p`).
        """
        if not self._split.exact:
            raise PolicyError("logp_min_p needs a model whose output layer can be applied by itself")
        groups, tokens, mask = (rollouts[name].to(self.device) for name in ("groups", "tokens", "mask"))
        with self.train_mode(dropout=False):
            hidden, _ = self._hidden([p.tokens for p in rollouts.prompts], groups, tokens, mask, None)
            chunk = rows_per_chunk(self._split.vocabulary, self.device)
            found = score_min_p(hidden, self._head, tokens[mask], rollouts.sampling, min_p, chunk)
        return found.new_zeros(mask.shape).masked_scatter(mask, found)

    @torch.no_grad()
    def score_curvature(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """The columns of CURVATURE; 0 where masked. [B,T] each, without gradient (see `logprobs.score_curvature`)."""
        if not self._split.exact or self._split.linear_head is None:
            raise PolicyError("the curvature columns need a model whose output layer is a matrix product alone")
        groups, tokens, mask = (rollouts[name].to(self.device) for name in ("groups", "tokens", "mask"))
        with self.train_mode(dropout=False):
            hidden, _ = self._hidden([p.tokens for p in rollouts.prompts], groups, tokens, mask, None)
            chunk = rows_per_chunk(self._split.vocabulary, self.device)
            found = score_curvature(hidden, self._head, tokens[mask], rollouts.sampling, chunk)
        return {name: x.new_zeros(mask.shape).masked_scatter(mask, x) for name, x in found.items()}

    def score_shown(self, rollouts: Rollouts, template: str) -> dict[str, Tensor]:
        """The columns of SHOWN: KL from each decision of a wrong rollout to the decision that this very policy takes
        with the first right rollout of the group in its prompt, and that decision's entropy. [B,T]; 0 where masked, NaN
        in rollouts that are right, have no right one beside them, or do not fit the context with it.

        The second prompt is what was asked with `template` behind it, {solution} the text of the right rollout. The
        groups must be whole. Gradient through the KL, and there through the rollout's own distribution alone.
        """
        if not self._split.exact:
            raise PolicyError("kl_shown needs a model whose output layer can be applied by itself")
        groups, tokens, mask = (rollouts[name].to(self.device) for name in ("groups", "tokens", "mask"))
        found = shown.prompts(rollouts, template, self.encode, _context(self.model, self.spec))
        rows, prompts = list(found), list(found.values())
        nothing = torch.full(mask.shape, torch.nan, device=self.device).masked_fill(~mask, 0.0)
        if not mask[rows].any():
            return {"kl_shown": nothing, "entropy_shown": nothing}
        index = torch.tensor(rows, device=self.device)
        chosen, live = tokens[index], mask[index]
        with self.train_mode(dropout=False):
            own, twins = self._hidden([p.tokens for p in rollouts.prompts], groups[index], chosen, live, None)
            own = own if twins is None else own.index_select(0, twins.number)
            with torch.no_grad():
                other, _ = self._hidden(prompts, torch.arange(len(rows), device=self.device), chosen, live, None)
            chunk = rows_per_chunk(self._split.vocabulary, self.device)
            both = score_shown(own, other, self._head, chosen[live], rollouts.sampling, chunk)
        return {
            name: nothing.to(x.dtype).index_copy(0, index, x.new_zeros(live.shape).masked_scatter(live, x))
            for name, x in zip(("kl_shown", "entropy_shown"), both, strict=True)
        }

    def sft_loss(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        seed: int | None = None,
        part: Part = WHOLE,
        decided: Sequence[Sequence[bool]] | None = None,
    ) -> Tensor:
        """Mean cross-entropy (nats) over completion tokens, EOS appended to each completion: a scalar with gradient.

        With `decided`, completions are taken as they are and only the tokens it marks carry loss: actions do, and
        what a world said does not. Prompts carry no loss. Dropout acts, where the model has any, by `seed` where one
        is given. Of a `part` of a batch the sum over its tokens, over the count of the whole's.
        """
        if seed is not None:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed((seed + part.first) % 2**63)
                return self.sft_loss(prompts, completions, part=part, decided=decided)
        eos = None if decided is not None else self.tokenizer.eos_token_id
        rows = [[*c] if eos is None or tuple(c[-1:]) == (eos,) else [*c, eos] for c in completions]
        width = max(map(len, rows))
        tokens = torch.tensor([[*r, *[0] * (width - len(r))] for r in rows], device=self.device)
        mask = torch.arange(width, device=self.device) < torch.tensor([[len(r)] for r in rows], device=self.device)
        if decided is not None:
            mask = torch.tensor([[*d, *[False] * (width - len(d))] for d in decided], device=self.device)
        groups = torch.arange(len(rows), device=self.device)
        with self.train_mode():
            logp = self._score(prompts, groups, tokens, mask, Sampling(), ("logp",))["logp"]
        return -logp.sum() / part.total(int(mask.sum()))

    def _score(
        self,
        prompts: Sequence[Sequence[int]],
        groups: Tensor,
        tokens: Tensor,
        mask: Tensor,
        sampling: Sampling,
        want: Collection[str],
        branch: Tensor | None = None,
    ) -> dict[str, Tensor]:
        groups, tokens, mask = (x.to(self.device) for x in (groups, tokens, mask))
        chosen = tokens[mask]
        if self._split.exact:
            hidden, twins = self._hidden(prompts, groups, tokens, mask, branch)
            chosen = chosen if twins is None else chosen[twins.first]
            weight = self._split.linear_head
            if weight is not None and not sampling.truncates:
                scores = score_linear(hidden, weight, chosen, sampling, want, self.engine.forbid)
            else:
                chunk = rows_per_chunk(self._split.vocabulary, self.device)
                scores = score_hidden(hidden, self._head, chosen, sampling, want, chunk)
            if twins is not None:
                scores = {name: x.index_select(0, twins.number) for name, x in scores.items()}
        else:
            scores = self._score_whole(*pack(prompts, groups, tokens, mask), chosen, sampling, want)
        return {name: x.new_zeros(mask.shape).masked_scatter(mask, x) for name, x in scores.items()}

    @torch.no_grad()
    def _compare(self, rollouts: Rollouts, want: Collection[str]) -> dict[str, Tensor]:
        """The columns of GROUPWISE in `want`, [B,T]; 0 where masked."""
        if not self._split.exact:
            raise PolicyError(f"{', '.join(sorted(want))} need a model whose output layer can be applied by itself")
        groups, tokens, mask = (rollouts[name].to(self.device) for name in ("groups", "tokens", "mask"))
        hidden, _ = self._hidden([p.tokens for p in rollouts.prompts], groups, tokens, mask, None)
        chunk = rows_per_chunk(self._split.vocabulary, self.device)
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32

        def logits(states: Tensor) -> Tensor:
            return self._split.head(states).to(precise) / (rollouts.sampling.temperature or 1.0)

        found = {}
        if "spread" in want:
            found["spread"] = groupwise.position_spread(hidden, logits, groups, mask, chunk)
        if "influence" in want:
            if "correct" not in rollouts:
                raise PolicyError("influence is on correct rollouts, and the task has no verifier to say which are")
            right = rollouts["correct"].to(self.device, precise)
            share = right / group_sum(right, groups).clamp_min(1.0)
            owner, weight = (x.unsqueeze(-1).expand(mask.shape)[mask] for x in (groups, share))
            found["influence"] = groupwise.head_influence(hidden, logits, tokens[mask], owner, weight, chunk)
        return {name: x.new_zeros(mask.shape).masked_scatter(mask, x) for name, x in found.items()}

    def _hidden(
        self, prompts: Sequence[Sequence[int]], groups: Tensor, tokens: Tensor, mask: Tensor, branch: Tensor | None
    ) -> tuple[Tensor, Twins | None]:
        """The hidden states [N,H] that predict the decisions, in row-major order of `mask`; of twins only the first."""
        if self._shared is not None and self.shares_prefix and len(groups) > len(groups.unique()) and mask.any():
            packed = pack_groups(prompts, groups, tokens, mask, branch, self._shared.ragged)
            learns = torch.is_grad_enabled() and not self.model.training
            place = (prompts, groups, tokens, mask, packed.at, packed.ids.shape[1])
            if not learns or (found := self.kept.find(*place)) is None:
                return self._shared.body(packed), packed.twins
            kept, lines = found
            ordered, order = lines.sort()
            if isinstance(at := as_slice(ordered), slice):  # all of a call: its tables are read as they are
                packed = packed.ordered(order)
            else:
                at = lines
            with kept.read(at):
                return self._shared.body(packed), packed.twins
        ids, row, column = pack(prompts, groups, tokens, mask)
        return self._split.body(ids)[row, column], None

    def _score_whole(
        self, ids: Tensor, row: Tensor, column: Tensor, chosen: Tensor, sampling: Sampling, want: Collection[str]
    ) -> dict[str, Tensor]:
        """For models that do not split: the model's own logits, one row of the batch at a time, recomputed backward."""

        def one(i: Tensor) -> dict[str, Tensor]:
            mine = row == i
            logits = self._forbid(self._split.full_logits(ids[i : i + 1])[0, column[mine]])
            return measure(logits, chosen[mine], sampling, want)

        numbers = torch.arange(len(ids), device=self.device)
        if torch.is_grad_enabled():
            parts = [checkpoint(one, i, use_reentrant=False) for i in numbers]
        else:
            parts = [one(i) for i in numbers]
        return {name: torch.cat([part[name] for part in parts]) for name in want}

    def _head(self, hidden: Tensor) -> Tensor:
        return self._forbid(self._split.head(hidden))

    def _forbid(self, logits: Tensor) -> Tensor:
        """Leave out what the engine never samples, so that both sides normalise over the same tokens."""
        if not self.engine.forbid:
            return logits
        return logits.index_fill(-1, torch.tensor(self.engine.forbid, device=logits.device), float("-inf"))

    @contextmanager
    def train_mode(self, *, dropout: bool = True) -> Iterator[None]:
        """Modes for a differentiable forward pass, restored after: dropout as asked, gradient checkpointing by spec.

        transformers checkpoints a layer only while that layer is in training mode, so without dropout exactly those
        layers are put in training mode, and their dropout and attention, which are modules inside, stay in eval
        (dropout a layer applies by itself, as OPT's do, is off for good under checkpointing).
        """
        checkpointed = self.spec.gradient_checkpointing and torch.is_grad_enabled()
        with evaluating(self.model):
            if dropout:
                self.model.train()
            elif checkpointed:
                for layer in self._checkpointed_layers():
                    layer.training = True
            try:
                yield
            finally:
                if dropout or checkpointed:
                    self.model.eval()

    def _checkpointed_layers(self) -> Iterator[Any]:
        from transformers.modeling_layers import GradientCheckpointingLayer

        return (m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer))

    def copy_frozen(self) -> CausalLM:
        """An independent copy that takes no gradient. With adapters, prefer `Reference`, which copies them alone."""
        twin = CausalLM(copy.deepcopy(self.model).requires_grad_(False), self.tokenizer, self.spec)
        twin.version = self.version
        twin.engine.forbid = self.engine.forbid
        return twin


def _disable_own_dropout(layer: Any) -> None:
    """Zero the dropout rates that a layer keeps as plain numbers and applies while it is in training mode."""
    for name, value in vars(layer).items():
        if "dropout" in name and isinstance(value, float):
            setattr(layer, name, 0.0)


def _context(model: Any, spec: ModelSpec) -> int | None:
    own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [n for n in (own, spec.max_context) if n is not None]
    return min(limits) if limits else None
