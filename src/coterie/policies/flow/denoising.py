"""A policy whose decisions are denoising steps: tables and scores of the paths that a model of velocities takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import PolicyError
from coterie.policies.flow import compared, steps, tail
from coterie.policies.flow.velocity import Stretch, VelocityModel
from coterie.policies.state import copy_state, trainable
from coterie.rollouts import Prompt, Rollouts, Sampling

PROVIDES = ("logp", "kl_ref", "mean_gap", "best_gap", "fine_gap")


class DenoisingPolicy(VelocityModel):
    """A policy whose decisions are the denoising steps that draw noise.

    A kind of model says what its velocity is (`VelocityModel`), what a prompt is, and what a sample is to those who
    look at it. `version` counts updates of the weights. Sampling and scoring run the same arithmetic.
    """

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
    def tolerance(self) -> float:
        """The most by which a captured log-prob may differ from a recomputed one by rounding alone."""
        return 1e-5 if self._weights_dtype in (torch.float32, torch.float64) else 0.05

    # What a kind of model says

    def encode(self, prompt: Any) -> tuple[int, ...]:
        """The tokens of a prompt."""
        raise NotImplementedError

    def encode_all(self, prompts: Sequence[Any]) -> list[tuple[int, ...]]:
        """The tokens of each prompt."""
        return [self.encode(prompt) for prompt in prompts]

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """A prompt, for people."""
        raise NotImplementedError

    def encode_completion(self, sample: Any) -> Tensor:
        """A supervised example, as latents."""
        raise NotImplementedError

    def samples(self, states: Tensor) -> list[Any]:
        """Last states [N,*shape] as graders see them."""
        raise NotImplementedError

    def sft_loss(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Tensor], seed: int | None = None
    ) -> Tensor:
        """Flow matching: the mean squared error of the velocity, at noise levels and noise drawn from `seed`."""
        raise NotImplementedError

    def save(self, folder: str | Path, *, merge: bool = False) -> None:
        """Write what `load` reads."""
        raise NotImplementedError

    def _supervised_noise(
        self, clean: Tensor, first: int, whole: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What supervised examples draw, the `first` and following ones of a `whole` batch: normal numbers for their
        noise levels [N], noise [N,*shape], and uniform numbers for whose prompt is dropped [N].
        """
        own = slice(first, first + len(clean))
        normal = torch.randn(whole, generator=generator, dtype=self.dtype)[own]
        noise = torch.randn((whole, *clean.shape[1:]), generator=generator, dtype=self.dtype)[own].to(self.device)
        return normal, noise, torch.rand(whole, generator=generator)[own]

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
            path = self.finish(path, prompts, groups, spec)
        return self.table(prompts, groups, path, sampling, entropy=entropy)

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
