"""A policy whose decisions are denoising steps: everything about paths and tables, for any model of velocities."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import PolicyError
from coterie.policies.flow import compared, steps, tail
from coterie.policies.state import copy_state, trainable
from coterie.rollouts import Denoising, Prompt, Rollouts, Sampling

PROVIDES = ("logp", "kl_ref", "mean_gap", "best_gap", "fine_gap")


@dataclass
class Stretch:
    """A stretch of denoising of N samples, n steps."""

    states: Tensor
    """[N,n+1,*shape]"""
    logp: Tensor
    """[N,n], 0 where the step drew no noise"""
    std: Tensor
    """[N,n], 0 where the step drew no noise"""
    means: Tensor
    """[N,n,*shape]"""


class DenoisingPolicy:
    """A policy whose decisions are the denoising steps that draw noise.

    A kind of model says what a prompt is, what its velocity n - x0 is, and what a sample is to those who look at it.
    `version` counts updates of the weights. Sampling and scoring run the same arithmetic in float32 (float64 for a
    float64 model).
    """

    model: Any
    version: int
    decisions = "denoising steps"
    lacks = {
        "tokens": "denoising steps have no token ids",
        "answer_mask": "no denoising step spells an answer",
        "answers": "samples are no texts whose answers could be compared",
        "matched": "no denoising step spells a text",
        "entropy": "the noise of a step is fixed, so its entropy has no gradient",
        "spread": "it compares distributions over tokens",
        "influence": "it is worked out at the output layer of a language model",
        "hidden_square": "it is worked out at the output layer of a language model",
        "score_square": "it is worked out at the output layer of a language model",
        "score_variance": "it is worked out at the output layer of a language model",
        "logp_min_p": "it cuts unlikely tokens",
        "kl_shown": "a sample is no text that could be shown",
        "entropy_shown": "a sample is no text that could be shown",
        "logp_teacher": "a teacher reads tokens",
        "logp_tempered": "the noise of a step has no temperature",
    }
    """Columns that it does not have, each with the reason."""
    independent = True
    """Whether the score of a decision does not need the others' of its rollout."""
    shares_prefix = False
    has_adapters = False
    exact = True

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def tolerance(self) -> float:
        """The most by which a captured log-prob may differ from a recomputed one by rounding alone."""
        return 1e-5 if self._weights_dtype in (torch.float32, torch.float64) else 0.05

    @property
    def _weights_dtype(self) -> torch.dtype:
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Of latents, means and log-probs."""
        return torch.float64 if self._weights_dtype == torch.float64 else torch.float32

    # What a kind of model says

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a state, at full resolution."""
        raise NotImplementedError

    def shape_of(self, spec: Denoising) -> tuple[int, ...]:
        """Of a state. Raises PolicyError where there is none of the spec's resolution."""
        raise NotImplementedError

    def levels(self, spec: Denoising) -> Tensor:
        """Noise levels of the spec's steps, falling. [steps+1]"""
        raise NotImplementedError

    def encode(self, prompt: Any) -> tuple[int, ...]:
        """The tokens of a prompt."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """A prompt, for people."""
        raise NotImplementedError

    def encode_completion(self, sample: Any) -> Tensor:
        """A supervised example, as latents."""
        raise NotImplementedError

    def samples(self, states: Tensor) -> list[Any]:
        """Last states [N,*shape] as graders see them."""
        raise NotImplementedError

    def _velocity(self, x: Tensor, prompts: Sequence[Prompt], groups: Tensor, step: Tensor, spec: Denoising) -> Tensor:
        """What `velocity` says of states that differ."""
        raise NotImplementedError

    def sft_loss(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Tensor], seed: int | None = None
    ) -> Tensor:
        """Flow matching: the mean squared error of the velocity, at noise levels and noise drawn from `seed`."""
        raise NotImplementedError

    def save(self, folder: str | Path, *, merge: bool = False) -> None:
        """Write what `load` reads."""
        raise NotImplementedError

    # Sampling

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        raise PolicyError(
            "a flow policy takes denoising steps and completes no tokens",
            where="rollout.strategy",
            hint="rollout.strategy=plain",
        )

    @torch.no_grad()
    def rollout(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        entropy: bool = False,
        ended: Callable[[int, Any], None] | None = None,
    ) -> Rollouts:
        """One group a prompt, one rollout a seed: the table with everything the roll-out stage provides.

        All samples end at once, so `ended` is never called. The states are in `media`: [B,steps+1,*shape].
        """
        spec = steps.spec_of(sampling)
        groups = torch.arange(len(prompts)).repeat_interleave(torch.tensor([len(s) for s in seeds]))
        noise = self.noise(seeds, spec)
        few = tail.count(spec)
        last = max(spec.stochastic) + 1 if few and spec.stochastic else spec.steps
        path = self.denoise(noise[:, 0], prompts, groups, spec, noise=noise[:, 1:], last=last, forked=spec.shared_noise)
        if few:
            path = self._finish(path, prompts, groups, spec)
        return self.table(prompts, groups, path, sampling, entropy=entropy)

    def _finish(self, path: Stretch, prompts: Sequence[Prompt], groups: Tensor, spec: Denoising) -> Stretch:
        """The path with the samples that its last states become by `tail.finish`; states in between repeat the last."""
        x, first = path.states[:, -1], path.std.shape[1]

        def velocity(x: Tensor, step: Tensor, fine: Denoising) -> Tensor:
            return self.velocity(x, prompts, groups, step, fine)

        made = tail.finish(x, spec, first, velocity, self.levels)
        states = torch.stack([*[x] * (spec.steps - first - 1), made], 1)
        nothing = path.std.new_zeros(len(x), spec.steps - first)
        return Stretch(
            torch.cat([path.states, states], 1),
            torch.cat([path.logp, nothing], 1),
            torch.cat([path.std, nothing], 1),
            torch.cat([path.means, states], 1),
        )

    def noise(self, seeds: Sequence[Sequence[int]], spec: Denoising) -> Tensor:
        """Everything a rollout draws, by its seed alone: where it starts, then a draw a step. [B,steps+1,*shape]

        With shared noise the rollouts of a group start where the first does.
        """
        rows = []
        for group in seeds:
            drawn = [self._draw(seed, spec.steps + 1, spec) for seed in group]
            for row in drawn[1:] if spec.shared_noise else []:
                row[0] = drawn[0][0]
            rows += drawn
        return torch.stack(rows).to(self.device)

    def _draw(self, seed: int, count: int, spec: Denoising) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.shape_of(spec), generator=generator, dtype=self.dtype)

    @torch.no_grad()
    def denoise(
        self,
        x: Tensor,
        prompts: Sequence[Prompt],
        groups: Tensor,
        spec: Denoising,
        *,
        noise: Tensor,
        first: int = 0,
        last: int | None = None,
        forked: bool = False,
    ) -> Stretch:
        """Take steps first <= s < last from states x [N,*shape]. noise: [N,last-first,*shape], a draw for each step.
        `forked`: some of the states x are equal.
        """
        last = spec.steps if last is None else last
        levels, states, logps, stds, means = self.levels(spec), [x], [], [], []
        for s in range(first, last):
            step = torch.full((len(x),), s, device=x.device)
            v = self.velocity(x, prompts, groups, step, spec, forked=forked and s == first)
            mean, std = steps.transition(
                spec if steps.draws_noise(spec, s) else steps.without_noise(spec), x, v, step, levels
            )
            if bool((std > 0).all()):
                x = mean + std.view(-1, *[1] * (x.dim() - 1)) * noise[:, s - first]
                logps.append(steps.log_density(x, mean, std, spec.reduce))
            else:
                x = mean
                logps.append(torch.zeros_like(std))
            states.append(x)
            stds.append(std)
            means.append(mean)
        return Stretch(*(torch.stack(part, 1) for part in (states, logps, stds, means)))

    @torch.no_grad()
    def coast(
        self, x: Tensor, prompts: Sequence[Prompt], groups: Tensor, spec: Denoising, stops: Sequence[int]
    ) -> Tensor:
        """Follow the ODE from x [N,*shape], the state before step stops[0], in one stride from each of `stops` to the
        next. The state at every place from the first to the last; in a stride, where it began. [N,places,*shape]
        """
        levels, states = self.levels(spec), []
        for at, after in pairwise(stops):
            states += [x] * (after - at)
            step = torch.full((len(x),), at, device=x.device)
            x = x + self.velocity(x, prompts, groups, step, spec) * (levels[after] - levels[at])
        return torch.stack([*states, x], 1)

    def velocity(
        self,
        x: Tensor,
        prompts: Sequence[Prompt],
        groups: Tensor,
        step: Tensor,
        spec: Denoising,
        *,
        forked: bool = False,
    ) -> Tensor:
        """The velocity at states [N,*shape] before steps [N], guided as the spec says. With gradient through the
        conditional prediction alone. `forked`: some states may be equal, and are run through the model once.
        """
        groups = groups.to(x.device)
        once = steps.distinct(x, step, groups) if forked else None
        if once is not None:
            first, each = once
            return self.velocity(x[first], prompts, groups[first], step[first], spec)[each]
        return self._velocity(x, prompts, groups, step, spec)

    # The table

    def table(
        self, prompts: Sequence[Prompt], groups: Tensor, path: Stretch, sampling: Sampling, *, entropy: bool = False
    ) -> Rollouts:
        """The table of whole paths, with samples for the graders."""
        spec, mask = steps.spec_of(sampling), path.std > 0
        groups = groups.to(self.device)
        levels = self.levels(spec)
        columns = {
            "groups": groups,
            "mask": mask,
            "lengths": mask.sum(-1),
            "truncated": torch.zeros_like(groups, dtype=torch.bool),
            "logp_old": path.logp,
            "version": torch.where(mask, self.version, 0),
            "prompt_index": torch.tensor([p.index for p in prompts], device=self.device)[groups],
            "step_std": path.std,
            "step_size": torch.where(mask, levels[:-1] - levels[1:], 0.0),
            "step_gain": torch.where(mask, steps.gains(spec, levels), 0.0),
        }
        if entropy:
            exact = steps.entropy(path.std.clamp_min(1e-30), path.states[0, 0].numel(), spec.reduce)
            columns["entropy_old"] = torch.where(mask, exact, 0.0)
        media = {"states": path.states} | ({"mean_old": path.means} if spec.keep_means else {})
        return Rollouts(list(prompts), dict(columns), sampling, self.samples(path.states[:, -1]), media)

    @torch.no_grad()
    def renoised(
        self, prompts: Sequence[Prompt], groups: Tensor, clean: Tensor, noise: Tensor, at: Tensor, sampling: Sampling
    ) -> Rollouts:
        """The table whose decisions are draws of noise on finished samples: at x = (1 - s) x0 + s n the model is to say
        n - x0. Its log-prob is the negative squared error, so the velocity is as the mean of a Gaussian of variance
        1/2, without guidance. clean: [B,*shape], noise: [B,K,*shape], at: [B,K], the steps before which s is the level

        In `media` the states are the K noisy ones and the sample.
        """
        spec, groups, x0 = replace(steps.spec_of(sampling), matching=True), groups.to(self.device), clean.unsqueeze(1)
        level = self.levels(spec)[at]
        wide = level.view(*level.shape, *[1] * (clean.dim() - 1))
        mask = torch.ones_like(at, dtype=torch.bool)
        columns = {
            "groups": groups,
            "mask": mask,
            "lengths": mask.sum(-1),
            "truncated": torch.zeros_like(groups, dtype=torch.bool),
            "logp_old": torch.zeros_like(level),
            "version": torch.full_like(at, self.version),
            "prompt_index": torch.tensor([p.index for p in prompts], device=self.device)[groups],
            "step_std": torch.full_like(level, 0.5**0.5),
            "step_size": level,
            "step_gain": torch.ones_like(level),
        }
        media = {"states": torch.cat([(1 - wide) * x0 + wide * noise, x0], 1), "target": noise - x0, "at": at}
        made = Rollouts(list(prompts), dict(columns), replace(sampling, denoising=spec), self.samples(clean), media)
        row, step = mask.nonzero(as_tuple=True)
        v, _, std = self._transitions(made, row, step)
        made.columns["logp_old"] = self._log_prob(made, row, step, v, std).view(level.shape)
        if spec.keep_means:
            made.media["mean_old"] = v.view(noise.shape)
        return made

    # Scoring

    def score(self, rollouts: Rollouts, want: Collection[str] = ("logp",)) -> dict[str, Tensor]:
        """{"logp", "kl_ref", "mean_gap", "best_gap", "fine_gap"} [B,T] as wanted, of the decisions under the mask; 0
        elsewhere.

        Differentiable when gradients are on; the stored states take none. All decisions in one forward pass: the caller
        micro-batches. `kl_ref` needs `mean_ref` in media, `mean_gap` `mean_old`, `best_gap` `velocity_best`, and
        `fine_gap` `velocity_fine`.
        """
        unknown = set(want) - set(PROVIDES)
        if unknown:
            raise PolicyError(
                f"a flow policy provides {', '.join(PROVIDES)}, not {', '.join(sorted(unknown))}", where="score"
            )
        spec, mask = steps.spec_of(rollouts.sampling), rollouts["mask"]
        row, step = mask.nonzero(as_tuple=True)
        v, mean, std = self._transitions(rollouts, row, step)
        found = {}
        if "logp" in want:
            found["logp"] = self._log_prob(rollouts, row, step, mean, std)
        for name, other in (("kl_ref", "mean_ref"), ("mean_gap", "mean_old")):
            if name in want:
                found[name] = steps.divergence(mean, rollouts.media[other][row, step], std, spec.reduce)
        for name, other in (("best_gap", "velocity_best"), ("fine_gap", "velocity_fine")):
            if name in want:
                found[name] = steps.reduced((v - rollouts.media[other][row, step]) ** 2, "mean")
        return {name: x.new_zeros(mask.shape).masked_scatter(mask, x) for name, x in found.items()}

    def _transitions(self, rollouts: Rollouts, row: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Velocity, mean and standard deviation of some steps."""
        spec, x = steps.spec_of(rollouts.sampling), rollouts.media["states"][row, step]
        if spec.matching:
            at = rollouts.media["at"][row, step]
            v = self.velocity(x, rollouts.prompts, rollouts["groups"][row], at, replace(spec, guidance=1.0))
            return v, v, torch.full((len(v),), 0.5**0.5, dtype=v.dtype, device=v.device)
        forked = "parent" in rollouts or spec.shared_noise
        v = self.velocity(x, rollouts.prompts, rollouts["groups"][row], step, spec, forked=forked)
        return (v, *steps.transition(spec, x, v, step, self.levels(spec)))

    def _log_prob(self, rollouts: Rollouts, row: Tensor, step: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Of some decisions, given their means and standard deviations."""
        spec, media = steps.spec_of(rollouts.sampling), rollouts.media
        if spec.matching:
            return -steps.reduced((media["target"][row, step] - mean) ** 2, spec.reduce)
        return steps.log_density(media["states"][row, step + 1], mean, std, spec.reduce)

    def means(self, rollouts: Rollouts) -> Tensor:
        """Mean of the state after each decision, 0 elsewhere. [B,steps,*shape]"""
        row, step = rollouts["mask"].nonzero(as_tuple=True)
        _, mean, _ = self._transitions(rollouts, row, step)
        out = torch.zeros_like(rollouts.media["states"][:, 1:])
        out[row, step] = mean.detach()
        return out

    def previews(self, rollouts: Rollouts, row: Tensor, step: Tensor) -> Tensor:
        return compared.previews(self, rollouts, row, step)

    def best_velocities(self, rollouts: Rollouts) -> Tensor:
        return compared.best_velocities(self, rollouts)

    def fine_velocities(self, rollouts: Rollouts, substeps: int) -> Tensor:
        return compared.fine_velocities(self, rollouts, substeps)

    def decision_texts(self, rollouts: Rollouts) -> None:
        """Steps have no text."""

    # Weights

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Tensor]:
        """The trainable parameters by name; not copied."""
        return trainable(self.model)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy `state` into the trainable parameters. Raises PolicyError unless names and shapes agree exactly."""
        copy_state(self.state_dict(), state)
