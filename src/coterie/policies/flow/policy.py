"""The flow policy: samples by denoising, each step that draws noise a decision with an exact Gaussian density."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import PolicyError, did_you_mean
from coterie.policies.base import WHOLE, Part
from coterie.policies.flow import steps
from coterie.policies.flow.model import CONFIG, TYPE, FlowTransformer
from coterie.policies.flow.spec import FlowSpec
from coterie.policies.state import copy_state, trainable
from coterie.reductions import group_position
from coterie.rollouts import Denoising, Prompt, Rollouts, Sampling

PARTS, ZERO = 1000, 20_000
"""A number that a model is told is a token: so many a unit, and the one that is 0."""
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


class FlowPolicy:
    """A policy whose decisions are the denoising steps that draw noise.

    `model` predicts the velocity n - x0; it is called with a sample, a noise level and a condition. `version` counts
    updates of the weights. Sampling and scoring run the same arithmetic in float32 (float64 for a float64 model).
    """

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

    def __init__(self, model: FlowTransformer, spec: FlowSpec) -> None:
        self.model, self.spec = model.eval(), spec
        self.version = 0

    @classmethod
    def load(
        cls, spec: FlowSpec, shape: Sequence[int] = (), classes: Sequence[str] = (), told: bool = False
    ) -> FlowPolicy:
        """Build a model for samples of `shape` that knows `classes`, or load the folder that the spec names. With
        `told` prompts are samples to be made better.
        """
        device = spec.device if spec.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        if spec.name is not None:
            return cls(_from_folder(Path(spec.name)).to(device), spec)
        assert spec.flow is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            try:
                model = FlowTransformer(shape, classes, spec.flow, told)
            except ValueError as error:
                raise PolicyError(str(error), where="model.flow.patch") from None
        return cls(model.to(device, getattr(torch, spec.dtype)), spec)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def tolerance(self) -> float:
        """The most by which a captured log-prob may differ from a recomputed one by rounding alone."""
        return 1e-5 if self._weights_dtype in (torch.float32, torch.float64) else 0.05

    @property
    def _weights_dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def dtype(self) -> torch.dtype:
        """Of latents, means and log-probs."""
        return torch.float64 if self._weights_dtype == torch.float64 else torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a state."""
        return self.model.shape

    def levels(self, spec: Denoising) -> Tensor:
        """Noise levels of the spec's steps, falling. [steps+1]"""
        return steps.noise_levels(spec.steps, spec.shift, self.dtype).to(self.device)

    # Prompts and samples

    def encode(self, prompt: Any) -> tuple[int, ...]:
        """The class that a prompt names; of a model that is told a sample, its numbers in thousandths."""
        if self.model.told:
            return self._read(str(prompt))
        if prompt not in self.model.classes:
            raise PolicyError(
                f"the model knows no class {prompt!r}",
                where="prompt",
                hint=did_you_mean(str(prompt), self.model.classes),
            )
        return (self.model.classes.index(prompt),)

    def _read(self, prompt: str) -> tuple[int, ...]:
        """The numbers of a prompt, as tokens from 0 on."""
        try:
            numbers = [round(float(n) * PARTS) + ZERO for n in prompt.split()]
        except ValueError:
            numbers = []
        count = math.prod(self.model.shape)
        if len(numbers) != count or not all(0 <= n <= 2 * ZERO for n in numbers):
            raise PolicyError(
                f"a prompt of this model is {count} numbers from {-ZERO / PARTS:g} to {ZERO / PARTS:g} with blanks "
                f"between, got {prompt[:40]!r}",
                where="prompt",
            )
        return tuple(numbers)

    def _given(self, prompts: Sequence[Sequence[int]], rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The class, and the sample that it is told, of each of `rows`, which name places in `prompts`."""
        rows = rows.to(self.device)
        if not self.model.told:
            return torch.tensor([p[0] for p in prompts], device=self.device)[rows], None
        told = (torch.tensor(list(prompts), dtype=self.dtype, device=self.device) - ZERO) / PARTS
        return torch.zeros_like(rows), told.view(-1, *self.model.shape)[rows]

    def encode_completion(self, sample: Any) -> Tensor:
        """A supervised example, as latents."""
        return torch.as_tensor(sample, dtype=self.dtype, device=self.device)

    def samples(self, states: Tensor) -> list[Any]:
        """Last states [N,*shape] as graders see them."""
        return list(states.cpu().numpy())

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The name of a prompt's class, or its numbers, for people."""
        if self.model.told:
            return " ".join(f"{(i - ZERO) / PARTS:g}" for i in ids)
        return ", ".join(self.model.classes[i] for i in ids)

    def decision_texts(self, rollouts: Rollouts) -> None:
        """Steps have no text."""

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
        spec = _spec(sampling)
        groups = torch.arange(len(prompts)).repeat_interleave(torch.tensor([len(s) for s in seeds]))
        noise = self.noise(seeds, spec)
        path = self.denoise(noise[:, 0], prompts, groups, spec, noise=noise[:, 1:], forked=spec.shared_noise)
        return self.table(prompts, groups, path, sampling, entropy=entropy)

    def noise(self, seeds: Sequence[Sequence[int]], spec: Denoising) -> Tensor:
        """Everything a rollout draws, by its seed alone: where it starts, then a draw a step. [B,steps+1,*shape]

        With shared noise the rollouts of a group start where the first does.
        """
        rows = []
        for group in seeds:
            drawn = [self._draw(seed, spec.steps + 1) for seed in group]
            for row in drawn[1:] if spec.shared_noise else []:
                row[0] = drawn[0][0]
            rows += drawn
        return torch.stack(rows).to(self.device)

    def _draw(self, seed: int, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.shape, generator=generator, dtype=self.dtype)

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
            mean, std = steps.transition(spec if draws_noise(spec, s) else without_noise(spec), x, v, step, levels)
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

    def _velocity(self, x: Tensor, prompts: Sequence[Prompt], groups: Tensor, step: Tensor, spec: Denoising) -> Tensor:
        level = self.levels(spec)[step]
        condition, told = self._given([p.tokens for p in prompts], groups)
        v = self._forward(x, level, condition, told)
        if spec.guidance == 1.0:
            return v
        with torch.no_grad():
            nothing = None if told is None else torch.zeros_like(told)
            free = self._forward(x, level, torch.full_like(condition, self.model.unconditional), nothing)
        return free + spec.guidance * (v - free)

    def _forward(self, x: Tensor, level: Tensor, condition: Tensor, told: Tensor | None) -> Tensor:
        more = () if told is None else (told,)
        return self.model(x, level, condition, *more).to(self.dtype)

    @torch.no_grad()
    def renoised(
        self, prompts: Sequence[Prompt], groups: Tensor, clean: Tensor, noise: Tensor, at: Tensor, sampling: Sampling
    ) -> Rollouts:
        """The table whose decisions are draws of noise on finished samples: at x = (1 - s) x0 + s n the model is to say
        n - x0. Its log-prob is the negative squared error, so the velocity is as the mean of a Gaussian of variance
        1/2, without guidance. clean: [B,*shape], noise: [B,K,*shape], at: [B,K], the steps before which s is the level

        In `media` the states are the K noisy ones and the sample.
        """
        spec, groups, x0 = replace(_spec(sampling), matching=True), groups.to(self.device), clean.unsqueeze(1)
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

    def table(
        self, prompts: Sequence[Prompt], groups: Tensor, path: Stretch, sampling: Sampling, *, entropy: bool = False
    ) -> Rollouts:
        """The table of whole paths, with samples for the graders."""
        spec, mask = _spec(sampling), path.std > 0
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
        spec, mask = _spec(rollouts.sampling), rollouts["mask"]
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

    def means(self, rollouts: Rollouts) -> Tensor:
        """Mean of the state after each decision, 0 elsewhere. [B,steps,*shape]"""
        row, step = rollouts["mask"].nonzero(as_tuple=True)
        _, mean, _ = self._transitions(rollouts, row, step)
        out = torch.zeros_like(rollouts.media["states"][:, 1:])
        out[row, step] = mean.detach()
        return out

    @torch.no_grad()
    def previews(self, rollouts: Rollouts, row: Tensor, step: Tensor) -> Tensor:
        """The samples foreseen after some steps, each given by its row and its number: what the state becomes if its
        velocity stays to the end. [N,*shape]
        """
        spec, x = _spec(rollouts.sampling), rollouts.media["states"][row, step + 1]
        after = (step + 1).to(x.device)
        sigma = self.levels(spec)[after]
        last = spec.steps - 1  # behind it there is no velocity, and none is needed
        v = self.velocity(x, rollouts.prompts, rollouts["groups"][row], after.clamp_max(last), spec)
        return x - sigma.view(-1, *[1] * (x.dim() - 1)) * v

    @torch.no_grad()
    def best_velocities(self, rollouts: Rollouts) -> Tensor:
        """For each decision the velocity in the same step on the best path of its group: that of the rollout with the
        highest reward, the first of these. 0 elsewhere. [B,steps,*shape]
        """
        row, step = rollouts["mask"].nonzero(as_tuple=True)
        rewards, groups = rollouts["rewards"], rollouts["groups"]
        place = group_position(-rewards, groups)
        best = torch.zeros(int(groups.max()) + 1, dtype=torch.long, device=groups.device)
        best[groups[place == 0]] = (place == 0).nonzero().squeeze(-1)
        out = torch.zeros_like(rollouts.media["states"][:, 1:])
        leader, spec = best[groups[row]], _spec(rollouts.sampling)
        x = rollouts.media["states"][leader, step]
        out[row, step] = self.velocity(x, rollouts.prompts, groups[row], step, spec, forked=True)
        return out

    @torch.no_grad()
    def fine_velocities(self, rollouts: Rollouts, substeps: int) -> Tensor:
        """For each decision the velocity that leads in one step to where the ODE leads in `substeps`, evenly spaced
        before the shift as steps are, from the state before it. 0 elsewhere. [B,steps,*shape]
        """
        if substeps < 1:
            raise PolicyError(f"a step has at least one substep, got {substeps}", where="substeps", hint="substeps=4")
        row, step = rollouts["mask"].nonzero(as_tuple=True)
        spec = _spec(rollouts.sampling)
        spec = replace(spec, steps=substeps * spec.steps)
        levels, groups = self.levels(spec), rollouts["groups"][row]
        first = x = rollouts.media["states"][row, step]
        wide = (-1, *[1] * (x.dim() - 1))
        for at in (substeps * step + k for k in range(substeps)):
            x = x + self.velocity(x, rollouts.prompts, groups, at, spec) * (levels[at + 1] - levels[at]).view(wide)
        out = torch.zeros_like(rollouts.media["states"][:, 1:])
        out[row, step] = (x - first) / (levels[substeps * (step + 1)] - levels[substeps * step]).view(wide)
        return out

    def _transitions(self, rollouts: Rollouts, row: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Velocity, mean and standard deviation of some steps."""
        spec, x = _spec(rollouts.sampling), rollouts.media["states"][row, step]
        if spec.matching:
            at = rollouts.media["at"][row, step]
            v = self.velocity(x, rollouts.prompts, rollouts["groups"][row], at, replace(spec, guidance=1.0))
            return v, v, torch.full((len(v),), 0.5**0.5, dtype=v.dtype, device=v.device)
        forked = "parent" in rollouts or spec.shared_noise
        v = self.velocity(x, rollouts.prompts, rollouts["groups"][row], step, spec, forked=forked)
        return (v, *steps.transition(spec, x, v, step, self.levels(spec)))

    def _log_prob(self, rollouts: Rollouts, row: Tensor, step: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Of some decisions, given their means and standard deviations."""
        spec, media = _spec(rollouts.sampling), rollouts.media
        if spec.matching:
            return -steps.reduced((media["target"][row, step] - mean) ** 2, spec.reduce)
        return steps.log_density(media["states"][row, step + 1], mean, std, spec.reduce)

    def sft_loss(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Tensor],
        seed: int | None = None,
        part: Part = WHOLE,
    ) -> Tensor:
        """Flow matching: the mean squared error of the velocity, at noise levels and noise drawn from `seed`."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        clean = torch.stack(list(completions))
        count, whole = len(clean), part.total(len(clean))
        own = slice(part.first, part.first + count)
        normal = torch.randn(whole, generator=generator, dtype=self.dtype)[own]
        noise = torch.randn((whole, *clean.shape[1:]), generator=generator, dtype=self.dtype)[own].to(self.device)
        dropped = torch.rand(whole, generator=generator)[own] < self.spec.drop_prompt
        sigma = normal.sigmoid().to(self.device)
        wide = sigma.view(-1, *[1] * (clean.dim() - 1))
        dropped = dropped.to(self.device)
        condition, told = self._given(prompts, torch.arange(count))
        if told is not None:
            told = told.masked_fill(dropped.view(wide.shape), 0.0)
        condition = condition.masked_fill(dropped, self.model.unconditional)
        v = self._forward((1 - wide) * clean + wide * noise, sigma, condition, told)
        return ((v - (noise - clean)) ** 2).mean() * (count / whole)

    # Weights

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Tensor]:
        """The trainable parameters by name; not copied."""
        return trainable(self.model)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy `state` into the trainable parameters. Raises PolicyError unless names and shapes agree exactly."""
        copy_state(self.state_dict(), state)

    def save(self, folder: str | Path, *, merge: bool = False) -> None:
        """Write config and weights."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.model.save(folder)

    def copy_frozen(self) -> FlowPolicy:
        """An independent copy that takes no gradient."""
        twin = FlowPolicy(copy.deepcopy(self.model).requires_grad_(False), self.spec)
        twin.version = self.version
        return twin


def draws_noise(spec: Denoising, step: int) -> bool:
    """Whether the spec lets a step draw noise."""
    return spec.stochastic is None or step in spec.stochastic


def without_noise(spec: Denoising) -> Denoising:
    """The same spec without noise."""
    return replace(spec, sampler="ode", settings=(), noise_scale=None)


def _spec(sampling: Sampling) -> Denoising:
    if sampling.denoising is None:
        raise PolicyError("the sampling spec is one of tokens, and a flow policy denoises", where="sampling")
    return sampling.denoising


def _from_folder(folder: Path) -> FlowTransformer:
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"cannot read {CONFIG}: {error}", where=str(folder), hint="name a folder that a run or an export wrote"
        ) from error
    if config.get("type") != TYPE:
        raise PolicyError(
            "this task samples by denoising, and the folder holds no flow model",
            where=str(folder),
            hint="model='{flow: {layers: 3}}' makes a small one",
        )
    return FlowTransformer.load(folder, config)
