"""Held-out evaluation of a policy: sampled and greedy completions, verified, summarised with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from coterie.environments.base import World
from coterie.evaluation import summarise
from coterie.policies.base import Policy
from coterie.rollout.contexts import one_row_each
from coterie.rollout.episodes import play
from coterie.rollout.shared_episodes import play_together, prompts_for
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.sampling import held_out as held_out_spec
from coterie.sampling import probe
from coterie.sections import Settings
from coterie.streams import stream
from coterie.tasks.base import Task

WAVE = 512
"""Rows sampled at a time, so that memory does not grow with the size of the evaluation."""


def evaluate(policy: Policy | Mapping[str, Policy], task: Task, settings: Settings) -> dict[str, float]:
    """{"eval/…"}: avg@k, pass@k, maj@k and length with bootstrap intervals; greedy accuracy beside it.

    In a world of several agents, of whom one policy may be all: accuracy and reward of each, "agent/NAME/eval/…".
    """
    if not task.judges or len(task.held_out) == 0:
        return {}
    if task.world is not None and task.world.agents:
        return _evaluate_together(_by_agent(policy, task.world), task, task.world, settings)
    assert not isinstance(policy, Mapping)
    spec, r = settings.evaluation, settings.rollout
    rows = [task.held_out[i] for i in range(min(spec.prompts, len(task.held_out)))]
    rollouts = complete(policy, rows, held_out_spec(settings, task), spec.samples, settings.seed, "eval", task.world)
    k = spec.samples
    correct = verdicts(task, rollouts).view(len(rows), k)
    given = [task.answer(text) for text in rollouts.texts] if task.answer is not None else rollouts.texts
    votes = task.latent is None or task.answer is not None  # samples that are no text are never alike
    answers = [given[i * k : (i + 1) * k] for i in range(len(rows))] if votes else None
    out = summarise(
        correct.numpy(),
        rollouts["lengths"].cpu().view(len(rows), k).numpy(),
        answers=answers,
        truncated=rollouts["truncated"].cpu().view(len(rows), k).numpy(),
        ks=sorted({1, k}),
    )
    if rollouts.episodes:
        out["eval/failed_share"] = sum(e.failed is not None for e in rollouts.episodes) / len(rollouts)
    if spec.greedy and task.latent is None:
        argmax = Sampling(0.0, max_tokens=r.max_tokens, stop=tuple(r.stop))
        greedy = complete(policy, rows, argmax, 1, 0, "greedy", task.world)
        out["eval/greedy"] = float(verdicts(task, greedy).float().mean())
    return out


def _by_agent(policy: Policy | Mapping[str, Policy], world: World) -> Mapping[str, Policy]:
    return policy if isinstance(policy, Mapping) else dict.fromkeys(world.agents, policy)


def _evaluate_together(
    policies: Mapping[str, Policy], task: Task, world: World, settings: Settings
) -> dict[str, float]:
    spec, r = settings.evaluation, settings.rollout
    rows = [(task.held_out[i], -1) for i in range(min(spec.prompts, len(task.held_out)))]
    argmax = Sampling(0.0, max_tokens=r.max_tokens, stop=tuple(r.stop))
    ways = [("", held_out_spec(settings, task), spec.samples)] + ([("greedy_", argmax, 1)] if spec.greedy else [])
    out: dict[str, float] = {}
    for prefix, sampling, samples in ways:
        seeds = [[stream(settings.seed, "eval", i, k) for k in range(samples)] for i in range(len(rows))]
        prompts = {name: prompts_for(policy, name, rows) for name, policy in policies.items()}
        for name, table in play_together(policies, prompts, seeds, sampling, world).items():
            sound = [e for e in table.episodes if e.failed is None]
            if sound:
                out[f"agent/{name}/eval/{prefix}accuracy"] = sum(e.success for e in sound) / len(sound)
                out[f"agent/{name}/eval/{prefix}reward"] = sum(e.total for e in sound) / len(sound)
    return out


def accuracy(
    policy: Policy | Mapping[str, Policy], task: Task, settings: Settings, *, held_out: bool, key: int
) -> float:
    """Sampled accuracy on a few problems, one completion each, at the rollouts' temperature. Of several agents it is
    the lowest, 0 for one that did not act."""
    source = task.held_out if held_out else task.train
    rows = [source[i] for i in range(min(settings.evaluation.prompts, len(source)))]
    if task.world is not None and task.world.agents:
        policies, named = _by_agent(policy, task.world), [(row, -1) for row in rows]
        seeds = [[stream(settings.seed, f"probe{key}", i, 0)] for i in range(len(rows))]
        prompts = {name: prompts_for(own, name, named) for name, own in policies.items()}
        tables = play_together(policies, prompts, seeds, probe(settings, task), task.world)
        shares = {name: float(verdicts(task, table).float().mean()) for name, table in tables.items()}
        return min(shares.get(name, 0.0) for name in task.world.agents)
    assert not isinstance(policy, Mapping)
    made = complete(policy, rows, probe(settings, task), 1, settings.seed, f"probe{key}", task.world)
    return float(verdicts(task, made).float().mean())


def complete(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    sampling: Sampling,
    samples: int,
    seed: int,
    purpose: str,
    world: World | None = None,
) -> Rollouts:
    """`samples` completions (episodes, in a world) of every row's prompt, seeds keyed by purpose, row and sample."""
    parts = []
    per_wave = max(WAVE // samples, 1)
    for start in range(0, len(rows), per_wave):
        some = rows[start : start + per_wave]
        prompts = [Prompt(policy.encode(row["prompt"]), row) for row in some]
        seeds = [[stream(seed, purpose, start + i, k) for k in range(samples)] for i in range(len(some))]
        if world is None:
            parts.append(policy.rollout(prompts, seeds, sampling))
        else:
            parts.append(one_row_each(play(policy, prompts, seeds, sampling, world)))
    return Rollouts.concat(parts)


def verdicts(task: Task, rollouts: Rollouts) -> torch.Tensor:
    if rollouts.episodes:
        return torch.tensor([e.failed is None and e.success for e in rollouts.episodes])
    assert task.verify is not None
    rows = [rollouts.prompts[g].row for g in rollouts["groups"].tolist()]
    return torch.tensor([bool(task.verify(t, r)) for t, r in zip(rollouts.texts, rows, strict=True)])
