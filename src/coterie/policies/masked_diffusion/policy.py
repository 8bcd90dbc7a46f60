"""The masked-diffusion policy: a bidirectional model fills a canvas of masked places; each unmasking is a decision."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from coterie.errors import PolicyError
from coterie.metrics import record
from coterie.policies.base import WHOLE, Part
from coterie.policies.loading import load_model_and_tokenizer
from coterie.policies.masked_diffusion import block_causal, likelihood
from coterie.policies.masked_diffusion.decode import Trace, before_end, decode
from coterie.policies.masked_diffusion.learned import Schedule, temperature
from coterie.policies.masked_diffusion.likelihood import Inputs
from coterie.policies.masked_diffusion.mask_predictor import MaskPredictor, chunks, mask_token
from coterie.policies.masked_diffusion.schedule import plan
from coterie.policies.masked_diffusion.spec import MaskedDiffusionSpec
from coterie.policies.transformers_policy import TransformersPolicy
from coterie.rollout.engines.local import evaluating
from coterie.rollout.engines.sampling import measure, uniform, widen
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.sections import Settings, Unmask

PROVIDES = frozenset({"logp", "entropy"})


class MaskedDiffusion(TransformersPolicy):
    """A policy whose decisions are unmaskings: a token put at a place of a canvas of `max_tokens` places.

    The decision axis is the canvas, in the order of the text; `pass_index` says when a decision was taken. `media` keep
    the whole canvas: `canvas` [B,C] (the mask token where none was put), `unmasked` [B,C] (the pass that put it, -1 for
    none) and `noise` [B], the seed of the masks of an estimate. With a learned schedule (unmask.learned) its decisions
    stand behind the canvas, one a forward pass, marked by `schedules`; `media` keep them as `actions` [B,P,2].
    """

    decisions = "unmaskings"
    lacks = {
        "spread": "its decisions at one place are not taken one after another",
        "influence": "its decisions are not taken one after another",
        "preview_rewards": "an unmasking foresees no whole sample",
        "step_std": "unmaskings are drawn without Gaussian noise",
        "step_size": "unmaskings have no noise level",
        "step_gain": "unmaskings have no velocity",
        "best_gap": "unmaskings have no velocity",
        "fine_gap": "unmaskings have no velocity",
        "kl_ref": "the term kl estimates it for unmaskings",
        "mean_gap": "unmaskings have no mean",
        "hidden_square": "it is made for tokens one after another",
        "score_square": "it is made for tokens one after another",
        "score_variance": "it is made for tokens one after another",
        "logp_min_p": "it is made for tokens one after another",
        "kl_shown": "it is made for tokens one after another",
        "entropy_shown": "it is made for tokens one after another",
        "logp_teacher": "a teacher reads tokens one after another",
        "logp_tempered": "it is made for tokens one after another",
    }
    exact = True
    """Samples and scores come from one model; estimated log-probs are made anew before an update."""

    def __init__(self, model: Any, tokenizer: Any, spec: MaskedDiffusionSpec, settings: Settings) -> None:
        super().__init__(model, tokenizer, spec)
        self.unmask: Unmask = settings.unmask
        self.width = settings.rollout.max_tokens
        self.mask_id = mask_token(model, tokenizer, spec)
        self.eos_id: int | None = tokenizer.eos_token_id
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else self.eos_id if self.eos_id is not None else 0
        self.schedule: Schedule | None = None
        if self.unmask.learned:
            self.schedule = Schedule(len(plan(self.width, self.unmask)), self.unmask.explore, self.unmask.rate)
            self.schedule.to(device=self.device, dtype=widen(torch.empty(0, dtype=self.model.dtype)).dtype)
            if spec.name is not None:
                self.schedule.load(spec.name)
            self.model.schedule = self.schedule  # so that it is trained, copied and restored with the rest
        self.block: Tensor | None = None
        if spec.attention == "block_causal":
            self.block = block_causal.block_of(self.width, self.unmask).to(self.device)
        self.predictor = MaskPredictor(self.mask_id, self.pad_id, spec, self.block)
        self.predictor.check(self.model)

    @classmethod
    def load(cls, spec: MaskedDiffusionSpec, settings: Settings) -> MaskedDiffusion:
        """Build or load what `spec` names. Raises PolicyError with the mend when it cannot."""
        return cls(*load_model_and_tokenizer(spec), spec, settings)

    @property
    def estimates(self) -> bool:
        """Whether log-probs are estimates over drawn noise, not those captured while sampling."""
        return self.unmask.likelihood != "trajectory"

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """Text of a completion up to its first EOS, without special tokens."""
        ids = list(ids)
        end = ids.index(self.eos_id) if self.eos_id in ids else len(ids)
        return super().decode(ids[:end], stop)

    # Sampling

    def rollout(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        entropy: bool = False,
        ended: Callable[[int, str], None] | None = None,
        given: Tensor | None = None,
    ) -> Rollouts:
        """One group a prompt, one rollout a seed: the table with everything the roll-out stage provides.

        given: [B,C] tokens that stand in the canvas from the beginning, -1 where there is none; the column `given`
        marks them. Nobody decided on them, so they are in the mask only where log-probs are estimates, which say how
        likely a token is wherever it comes from. `ended` is called with the number and text of each rollout.
        """
        sizes = torch.tensor([len(s) for s in seeds], device=self.device)
        groups = torch.arange(len(prompts), device=self.device).repeat_interleave(sizes)
        seed = torch.tensor([s for own in seeds for s in own], dtype=torch.int64, device=self.device)
        canvas = torch.full((len(seed), sampling.max_tokens), self.mask_id, device=self.device)
        if given is not None:
            canvas = torch.where(given >= 0, given.to(self.device), canvas)
        tokens = [p.tokens for p in prompts]

        def forward(rows: Tensor, now: Tensor) -> Tensor:
            predict = partial(self.predictor.logits, self.model, tokens)
            return torch.cat([predict(groups[rows[c]], now[c]) for c in chunks(now)])

        with evaluating(self.model):
            trace = decode(forward, canvas, seed, sampling, self.unmask, self.mask_id, self.eos_id, self.schedule)
        table = self._table(prompts, groups, trace, sampling, seed, None if given is None else canvas != self.mask_id)
        if entropy:
            spread = trace.entropy
            if self.schedule is not None:
                spread = torch.cat(
                    [spread, torch.full_like(table.media["actions"][..., 0], self.schedule.entropy())], 1
                )
            table = table.with_columns(entropy_old=torch.where(table["mask"], spread, 0.0))
        for number, text in enumerate(table.texts):
            if ended is not None:
                ended(number, text)
        return table

    def _table(
        self,
        prompts: Sequence[Prompt],
        groups: Tensor,
        trace: Trace,
        sampling: Sampling,
        seed: Tensor,
        given: Tensor | None,
    ) -> Rollouts:
        inside = torch.ones_like(trace.canvas, dtype=torch.bool)
        if not self.unmask.after_end:
            inside = before_end(trace.canvas, self.eos_id)
        mask = (trace.unmasked >= 0) & inside
        if given is not None and self.estimates:
            mask |= given & inside
        columns = {
            "groups": groups,
            "tokens": torch.where(trace.canvas == self.mask_id, self.pad_id, trace.canvas),
            "mask": mask,
            "lengths": mask.sum(-1),
            "truncated": (trace.canvas != (-1 if self.eos_id is None else self.eos_id)).all(-1),
            "logp_old": torch.where(mask, trace.logp, 0.0),
            "version": torch.where(mask, self.version, 0),
            "pass_index": torch.where(mask, trace.unmasked, 0),
            "passes": trace.unmasked.amax(-1) + 1,
            "prompt_index": torch.tensor([p.index for p in prompts], device=self.device)[groups],
        }
        if given is not None:
            columns["given"] = given & inside
        texts = [self.decode([t for t in row if t != self.mask_id]) for row in trace.canvas.tolist()]
        media = {"canvas": trace.canvas, "unmasked": trace.unmasked, "noise": seed}
        if trace.actions is not None:
            columns |= self._schedule_columns(trace, columns)
            media["actions"] = trace.actions.value
        return Rollouts(list(prompts), dict(columns), sampling, texts, media)

    def _schedule_columns(self, trace: Trace, of_tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """The columns of decisions with those of the schedule behind the canvas, one a forward pass."""
        assert trace.actions is not None
        value = trace.actions.value
        number = torch.arange(value.shape[1], device=value.device).expand(value.shape[:2])
        made = number < of_tokens["passes"].unsqueeze(-1)
        record("schedule/temperature", temperature(value), made)
        record("schedule/places", trace.unmasked.ge(0).sum(-1) / of_tokens["passes"].clamp_min(1))
        own = {
            "tokens": torch.full_like(number, self.pad_id),
            "mask": made,
            "logp_old": trace.actions.logp,
            "version": torch.where(made, self.version, 0),
            "pass_index": torch.where(made, number, 0),
            "given": torch.zeros_like(made),
        }
        out = {
            name: torch.cat([of_tokens[name], x.to(of_tokens[name])], 1) for name, x in own.items() if name in of_tokens
        }
        return {
            **out,
            "lengths": out["mask"].sum(-1),
            "schedules": torch.cat([torch.zeros_like(of_tokens["mask"]), made], 1),
        }

    # Scoring

    def score(self, rollouts: Rollouts, want: Collection[str] = ("logp",)) -> dict[str, Tensor]:
        """{"logp", "entropy"} [B,T] as wanted, by the likelihood that unmask.likelihood names; 0 where masked.

        Differentiable when gradients are on. Float32 (float64 for a float64 model). An estimate is the same whenever
        the same rollouts are scored: its masks come from their `noise`.
        """
        if unknown := set(want) - PROVIDES:
            raise PolicyError(
                f"a masked diffusion model provides logp, entropy, not {', '.join(sorted(unknown))}", where="score"
            )
        if rollouts.sampling.temperature == 0.0 and torch.is_grad_enabled():
            raise PolicyError(
                "rollouts sampled at temperature 0 cannot be trained on",
                where="rollout.temperature",
                hint="sample at a temperature above 0, or score under torch.no_grad()",
            )
        canvas, noise = (rollouts.media[name].to(self.device) for name in ("canvas", "noise"))
        mask = torch.zeros_like(canvas, dtype=torch.bool)
        places = rollouts["mask"][:, : canvas.shape[1]].to(self.device)
        mask[:, : places.shape[1]] = places
        inputs = self._inputs(rollouts, mask)
        prompts, groups = [p.tokens for p in rollouts.prompts], rollouts["groups"].to(self.device)
        share = self.unmask.prompt_masking
        factor = self._temperatures(rollouts)
        parts: list[dict[str, Tensor]] = []
        cuts = chunks(inputs.hidden)

        def one(chunk: Tensor) -> dict[str, Tensor]:
            rows, hidden, asked = inputs.row[chunk], inputs.hidden[chunk], inputs.weight[chunk] != 0
            shown = torch.where(hidden, self.mask_id, canvas[rows])
            hide = (noise[rows], share) if share else None
            logits = self.predictor.logits(self.model, prompts, groups[rows], shown, hide)[asked]
            if factor is not None:
                logits = logits / factor[rows][asked].unsqueeze(-1).to(logits)
            return measure(logits, canvas[rows][asked], rollouts.sampling, want)

        with evaluating(self.model):
            for chunk in cuts:
                again = torch.is_grad_enabled() and len(cuts) > 1  # recompute backward: one chunk in memory at a time
                parts.append(checkpoint(one, chunk, use_reentrant=False) if again else one(chunk))
        width = rollouts["mask"].shape[1]
        found = {}
        for name in want:
            asked = inputs.weight != 0
            values = torch.cat([p[name] for p in parts]) if parts else self._nothing()
            each = values.new_zeros(asked.shape).masked_scatter(asked, values * inputs.weight[asked].to(values.dtype))
            total = values.new_zeros(canvas.shape).index_add(0, inputs.row, each)
            found[name] = total[:, :width]
            if self.schedule is not None and width > canvas.shape[1]:
                found[name] = torch.cat(
                    [found[name], self._schedule_scores(name, rollouts, width - canvas.shape[1])], 1
                )
        return found

    def _temperatures(self, rollouts: Rollouts) -> Tensor | None:
        """The factor on the temperature at which each place was filled, by a learned schedule. [B,C]"""
        if self.schedule is None:
            return None
        of_pass = temperature(rollouts.media["actions"].to(self.device))
        return of_pass.gather(1, rollouts.media["unmasked"].to(self.device).clamp_min(0))

    def _schedule_scores(self, name: str, rollouts: Rollouts, passes: int) -> Tensor:
        """Log-densities or entropies of the schedule's decisions in so many passes, 0 where masked. [B,passes]"""
        assert self.schedule is not None
        mask = rollouts["mask"][:, -passes:].to(self.device)
        if name == "entropy":
            return mask.to(self.schedule.weight) * self.schedule.entropy()
        return torch.where(mask, self.schedule.logp(rollouts.media["actions"].to(self.device)[:, :passes]), 0.0)

    def decision_texts(self, rollouts: Rollouts) -> list[list[str]]:
        """The text of each token that was chosen; of a schedule's decision its temperature and odds."""
        texts = super().decision_texts(rollouts)
        if self.schedule is None:
            return texts
        said = rollouts.media["actions"].cpu()
        for row, (own, mask) in enumerate(zip(texts, rollouts["mask"].cpu(), strict=True)):
            passes = int(mask[self.width :].sum())
            for number in range(passes):
                action = said[row, number]
                own[len(own) - passes + number] = f" [×{temperature(action):.2f} {action[1]:+.1f}]"
        return texts

    def save(self, folder: str | Path, *, merge: bool = False) -> None:
        """As other models are saved, and the learned schedule beside them, in a file of its own."""
        if self.schedule is None:
            return super().save(folder, merge=merge)
        del self.model.schedule
        try:
            super().save(folder, merge=merge)
        finally:
            self.model.schedule = self.schedule
        self.schedule.save(folder)

    def renoise(self, rollouts: Rollouts, epoch: int) -> Rollouts:
        """The same rollouts, to be estimated with other masks."""
        rollouts = rollouts.with_columns()
        rollouts.media = {**rollouts.media, "noise": likelihood.fresh(rollouts.media["noise"], epoch)}
        return rollouts

    def _inputs(self, rollouts: Rollouts, mask: Tensor) -> Inputs:
        u = self.unmask
        canvas, unmasked, noise = (rollouts.media[n].to(self.device) for n in ("canvas", "unmasked", "noise"))
        if u.likelihood == "trajectory":
            return likelihood.trajectory(mask & (unmasked >= 0), canvas, unmasked, self.mask_id)
        return (
            likelihood.one_step(mask)
            if u.likelihood == "one_step"
            else likelihood.elbo(mask, noise, u.masks, u.coupled)
        )

    def sft_loss(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        seed: int | None = None,
        part: Part = WHOLE,
    ) -> Tensor:
        """Masked denoising: each completion, filled up with EOS to the canvas, hides a uniform share of its places, and
        the loss is their cross-entropy over that share, a bound on the negative log-likelihood a place (nats). With
        attention by blocks the places are those of one block, drawn for each completion; what is before it stands.

        Masks come from `seed`, or else from the version of the weights.
        """
        end = self.pad_id if self.eos_id is None else self.eos_id
        longest = max(map(len, completions))
        if longest > self.width:
            raise PolicyError(
                f"a reference completion has {longest} tokens and the canvas {self.width}",
                where="rollout.max_tokens",
                hint=f"rollout.max_tokens={longest + 1}",
            )
        rows = [[*c, *[end] * (self.width - len(c))] for c in completions]
        canvas = torch.tensor(rows, device=self.device)
        whole = part.total(len(rows))
        numbers = torch.arange(len(rows), device=self.device)
        placed = numbers + part.first
        noise = placed + (self.version if seed is None else seed) % 2**62
        share = 1.0 - (uniform(noise, 0) + placed / whole) % 1.0  # in (0,1], spread over the batch
        place = torch.arange(1, self.width + 1, device=self.device)
        hidden = asked = uniform(noise.unsqueeze(-1), place) < share.unsqueeze(-1)
        count = 1
        if self.block is not None:
            count = int(self.block.max()) + 1
            chosen = (uniform(noise, self.width + 1) * count).long().unsqueeze(-1)
            asked = hidden & (self.block == chosen)
            hidden = asked | (self.block > chosen)
        self.model.train()
        try:
            shown = torch.where(hidden, self.mask_id, canvas)
            logits = self.predictor.logits(self.model, prompts, numbers, shown)
        finally:
            self.model.eval()
        loss = torch.nn.functional.cross_entropy(logits[asked], canvas[asked], reduction="none")
        return count * (loss / share.unsqueeze(-1).expand(asked.shape)[asked].to(loss)).sum() / (whole * self.width)

    def _nothing(self) -> Tensor:
        dtype = torch.float64 if self.model.dtype == torch.float64 else torch.float32
        return torch.zeros(0, dtype=dtype, device=self.device)
