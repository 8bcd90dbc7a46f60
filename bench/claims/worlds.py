"""The worlds that the tabular policy is trained in. Each takes a generator (the seed's) and gives a World."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from bench.claims import Figures
from bench.claims.tabular import Table, World

Make = Callable[[torch.Generator], World]
F64 = torch.float64


def normal(draw: torch.Generator, *size: int) -> Tensor:
    return torch.randn(size, generator=draw, dtype=F64)


def uniform(draw: torch.Generator, *size: int) -> Tensor:
    return torch.rand(size, generator=draw, dtype=F64)


def entropy(probabilities: Tensor) -> float:
    """Mean entropy of the decisions, nats."""
    return float(-(probabilities * probabilities.clamp_min(1e-300).log()).sum(-1).mean())


def one_hot(prompts: int) -> Tensor:
    return torch.eye(prompts, dtype=F64)


def _binary(right: Tensor, **more: Any) -> Table:
    return {"rewards": right.to(F64), "components": {"correct": right.to(F64)}, "correct": right, **more}


def hard_prompts(prompts: int = 16, arms: int = 64, lead: float = 1.0) -> Make:
    """One right answer among many, each prompt by itself; at first nearly every group is all wrong. `lead`: spread of
    the first logits; the right answer's begin low.
    """

    def make(draw: torch.Generator) -> World:
        weights = lead * normal(draw, prompts, 1, arms)
        best = torch.randint(arms, (prompts,), generator=draw)
        weights[torch.arange(prompts), 0, best] = -lead

        def score(t: Table, sampling: torch.Generator) -> Table:
            return _binary(t["tokens"][:, 0] == best[t["prompt_index"]])

        def measure(p: Tensor) -> Figures:
            return {"accuracy": float(p[torch.arange(prompts), 0, best].mean()), "entropy": entropy(p)}

        return World(one_hot(prompts), weights, score, measure)

    return make


def noisy_values(*, prompts: int = 24, arms: int = 8, tail: Literal[1, 2], scale: float = 0.3) -> Make:
    """Every answer has a value in [0, 1], and is rewarded with it plus noise of infinite variance: Student's t with
    `tail` degrees of freedom, by its inverse distribution function.
    """

    def make(draw: torch.Generator) -> World:
        values = uniform(draw, prompts, arms)

        def score(t: Table, sampling: torch.Generator) -> Table:
            mean = values[t["prompt_index"], t["tokens"][:, 0]]
            u = uniform(sampling, len(mean)).clamp(1e-9, 1 - 1e-9)
            noise = (torch.pi * (u - 0.5)).tan() if tail == 1 else (2 * u - 1) / (2 * u * (1 - u)).sqrt()
            rewards = mean + scale * noise
            return {"rewards": rewards, "components": {"value": rewards}}

        def measure(p: Tensor) -> Figures:
            got = (p[:, 0] * values).sum(-1)
            return {"regret": float((values.amax(-1) - got).mean()), "entropy": entropy(p)}

        return World(one_hot(prompts), torch.zeros(prompts, 1, arms, dtype=F64), score, measure)

    return make


def two_rewards(prompts: int = 16, choices: int = 6, scale: float = 10.0) -> Make:
    """Two decisions, each with a reward of its own: the first earns 1 where it is right, the second `scale`."""

    def make(draw: torch.Generator) -> World:
        weights = 0.5 * normal(draw, prompts, 2, choices)
        best = torch.randint(choices, (prompts, 2), generator=draw)

        def score(t: Table, sampling: torch.Generator) -> Table:
            right = (t["tokens"] == best[t["prompt_index"]]).to(F64)
            components = {"small": right[:, 0], "large": scale * right[:, 1]}
            return {"rewards": components["small"] + components["large"], "components": components}

        def measure(p: Tensor) -> Figures:
            each = p.gather(-1, best.unsqueeze(-1)).squeeze(-1)
            return {"both right": float(each.prod(-1).mean()), "small reward": float(each[:, 0].mean()),
                    "large reward": float(each[:, 1].mean())}  # fmt: skip

        return World(one_hot(prompts), weights, score, measure)

    return make


def noisy_verifier(prompts: int = 32, features: int = 12, arms: int = 6, most: float = 0.4) -> Make:
    """The verifier errs, with rates of its own for each prompt, from 0 to `most` and half of it on average; prompts
    share parameters. Components of weight 0 give the rates: 'rho0' (accepts a wrong answer), 'rho1' (rejects a right
    one).
    """

    def make(draw: torch.Generator) -> World:
        x = normal(draw, prompts, features) / features**0.5
        teacher = normal(draw, features, arms)
        best = (x @ teacher).argmax(-1)
        rates = most * uniform(draw, prompts, 2)

        def score(t: Table, sampling: torch.Generator) -> Table:
            clean = t["tokens"][:, 0] == best[t["prompt_index"]]
            rho = rates[t["prompt_index"]]
            flipped = uniform(sampling, len(clean)) < torch.where(clean, rho[:, 1], rho[:, 0])
            seen = clean ^ flipped
            components = {"correct": seen.to(F64), "rho0": rho[:, 0], "rho1": rho[:, 1]}
            return {"rewards": seen.to(F64), "correct": seen, "components": components}

        def measure(p: Tensor) -> Figures:
            return {"clean accuracy": float(p[torch.arange(prompts), 0, best].mean()), "entropy": entropy(p)}

        start = torch.zeros(features, 1, arms, dtype=F64)
        return World(x, start, score, measure, annotations=["rho0", "rho1"])

    return make


def degenerate_groups(prompts: int = 64, features: int = 24, arms: int = 16, lead: float = 4.0) -> Make:
    """Prompts that are nearly solved and prompts that are nearly hopeless, half and half: most groups of 8 agree.
    Prompts share parameters.
    """

    def make(draw: torch.Generator) -> World:
        best = torch.randint(arms, (prompts,), generator=draw)
        easy = torch.arange(prompts) % 2 == 0
        x = torch.cat([one_hot(prompts), normal(draw, prompts, features) / features**0.5], -1)
        weights = torch.zeros(prompts + features, 1, arms, dtype=F64)
        weights[torch.arange(prompts), 0, best] = torch.where(easy, lead + 2.0, -1.0).to(F64)

        def score(t: Table, sampling: torch.Generator) -> Table:
            return _binary(t["tokens"][:, 0] == best[t["prompt_index"]])

        def measure(p: Tensor) -> Figures:
            right = p[torch.arange(prompts), 0, best]
            return {"accuracy": float(right.mean()), "accuracy of hard prompts": float(right[~easy].mean()),
                    "entropy": entropy(p)}  # fmt: skip

        return World(x, weights, score, measure)

    return make


def several_solutions(
    prompts: int = 16, arms: int = 32, solutions: int = 6, lead: float = 2.0, tries: int = 16
) -> Make:
    """Several answers pass the verifier, one much likelier than the others at first. On the test each of them holds
    with probability one half, so pass@k there rewards a policy that knows several.
    """

    def make(draw: torch.Generator) -> World:
        order = torch.stack([torch.randperm(arms, generator=draw) for _ in range(prompts)])
        passing = torch.zeros(prompts, arms, dtype=torch.bool).scatter_(1, order[:, :solutions], True)
        holds = passing & (uniform(draw, prompts, arms) < 0.5)
        weights = 0.5 * normal(draw, prompts, 1, arms)
        weights[torch.arange(prompts), 0, order[:, 0]] += lead

        def score(t: Table, sampling: torch.Generator) -> Table:
            return _binary(passing[t["prompt_index"], t["tokens"][:, 0]])

        def measure(p: Tensor) -> Figures:
            one = (p[:, 0] * holds).sum(-1)
            return {f"pass@{tries} on the test": float((1 - (1 - one) ** tries).mean()),
                    "pass@1 on the test": float(one.mean()),
                    "training accuracy": float((p[:, 0] * passing).sum(-1).mean()), "entropy": entropy(p)}  # fmt: skip

        return World(one_hot(prompts), weights, score, measure)

    return make


def confident_errors(prompts: int = 16, arms: int = 16, lead: float = 4.0) -> Make:
    """The policy begins with much of its mass on one wrong answer, as if training had reinforced it by mistake: under
    the reference it is as likely as the others.
    """

    def make(draw: torch.Generator) -> World:
        order = torch.stack([torch.randperm(arms, generator=draw) for _ in range(prompts)])
        rows, best, wrong = torch.arange(prompts), order[:, 0], order[:, 1]
        before = 0.5 * normal(draw, prompts, 1, arms)
        weights = before.clone()
        weights[rows, 0, wrong] += lead

        def score(t: Table, sampling: torch.Generator) -> Table:
            return _binary(t["tokens"][:, 0] == best[t["prompt_index"]])

        def measure(p: Tensor) -> Figures:
            right, error = p[rows, 0, best], p[rows, 0, wrong]
            return {
                "accuracy": float(right.mean()),
                "mass on the confident error": float(error.mean()),
                "pass@8": float((1 - (1 - right) ** 8).mean()),
                "entropy": entropy(p),
            }

        return World(one_hot(prompts), weights, score, measure, reference=before)

    return make


def thinking(prompts: int = 8, longest: int = 24, least: int = 3, most: int = 10, start: float = -2.5) -> Make:
    """At each position: think on, or stop (token 0). The answer is right with probability 0.95 if the rollout thought
    as long as its prompt needs, else 0.05. At first it thinks far too long. Figures are exact.
    """

    def make(draw: torch.Generator) -> World:
        need = torch.randint(least, most + 1, (prompts,), generator=draw)
        weights = torch.zeros(prompts, longest, 2, dtype=F64)
        weights[..., 0] = start + 0.3 * normal(draw, prompts, longest)

        def score(t: Table, sampling: torch.Generator) -> Table:
            enough = ((t["tokens"] != 0) & t["mask"]).sum(-1) >= need[t["prompt_index"]]
            return _binary(uniform(sampling, len(enough)) < torch.where(enough, 0.95, 0.05))

        def measure(p: Tensor) -> Figures:
            alive = torch.cat([torch.ones(prompts, 1, dtype=F64), (1 - p[..., 0]).cumprod(-1)], -1)
            enough = alive.gather(1, need.unsqueeze(-1)).squeeze(-1)
            return {"length": float(alive[:, :longest].sum(-1).mean()), "accuracy": float((0.05 + 0.9 * enough).mean()),
                    "length over need": float((alive[:, :longest].sum(-1) - need).mean())}  # fmt: skip

        return World(one_hot(prompts), weights, score, measure, stops=True)

    return make


def all_steps_right(prompts: int = 16, steps: int = 5, choices: int = 3, lead: float = 0.5) -> Make:
    """A rollout of several decisions, rewarded only where every one of them is right. Rollouts share prefixes."""

    def make(draw: torch.Generator) -> World:
        best = torch.randint(choices, (prompts, steps), generator=draw)
        weights = 0.3 * normal(draw, prompts, steps, choices)
        weights.scatter_add_(2, best.unsqueeze(-1), torch.full((prompts, steps, 1), lead, dtype=F64))

        def score(t: Table, sampling: torch.Generator) -> Table:
            return _binary((t["tokens"] == best[t["prompt_index"]]).all(-1))

        def measure(p: Tensor) -> Figures:
            each = p.gather(-1, best.unsqueeze(-1)).squeeze(-1)
            return {"accuracy": float(each.prod(-1).mean()), "right decisions": float(each.mean())}

        return World(one_hot(prompts), weights, score, measure)

    return make


def lucky_reasoning(prompts: int = 16, steps: int = 4, luck: float = 0.4, noise: float = 0.15) -> Make:
    """Each decision is a step, sound (token 1) or flawed. The answer is right if all steps are sound, and by luck with
    probability `luck` if not. A process reward model sees each step with some noise: column step_rewards, in [0, 1].
    """

    def make(draw: torch.Generator) -> World:
        weights = 0.3 * normal(draw, prompts, steps, 2)
        weights[..., 0] += 0.5

        def score(t: Table, sampling: torch.Generator) -> Table:
            sound = t["tokens"] == 1
            right = sound.all(-1) | (uniform(sampling, len(sound)) < luck)
            seen = (0.15 + 0.7 * sound.to(F64) + noise * normal(sampling, *sound.shape)).clamp(0.0, 1.0)
            turn = torch.arange(steps).expand(len(sound), steps).clone()
            return _binary(right, step_rewards=seen, turn=turn)

        def measure(p: Tensor) -> Figures:
            sound = p[..., 1]
            return {"sound steps": float(sound.mean()), "sound rollouts": float(sound.prod(-1).mean()),
                    "accuracy": float((luck + (1 - luck) * sound.prod(-1)).mean())}  # fmt: skip

        return World(one_hot(prompts), weights, score, measure)

    return make


def uncertain_prompts(prompts: int = 32, features: int = 12, arms: int = 8, unclear: float = 0.5) -> Make:
    """Half of the prompts have no right answer: their reward is a coin. Prompts share parameters, so that what is
    learned from them is noise for the others.
    """

    def make(draw: torch.Generator) -> World:
        x = normal(draw, prompts, features) / features**0.5
        best = (x @ normal(draw, features, arms)).argmax(-1)
        clear = torch.arange(prompts) >= unclear * prompts

        def score(t: Table, sampling: torch.Generator) -> Table:
            token, index = t["tokens"][:, 0], t["prompt_index"]
            coin = uniform(sampling, len(token)) < 0.5
            right = torch.where(clear[index], token == best[index], coin)
            return _binary(right, answers=token)

        def measure(p: Tensor) -> Figures:
            right = p[torch.arange(prompts), 0, best]
            return {"accuracy of clear prompts": float(right[clear].mean()), "entropy": entropy(p)}

        known = torch.nn.functional.one_hot(best, arms).to(F64) * clear.unsqueeze(-1)
        start = 2.0 * torch.linalg.pinv(x) @ known  # an inclination to the right answer, where there is one
        return World(x, start.unsqueeze(1), score, measure)

    return make
