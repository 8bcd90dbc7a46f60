"""Held-out evaluation of a policy: sampled and greedy completions, verified, summarised with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from coterie.streams import stream, streams
from coterie.tasks.base import Task
from coterie.workers import Alone

WAVE = 512
"""Rows sampled at a time, so that memory does not grow with the size of the evaluation."""


def evaluate(
    policy: Policy | Mapping[str, Policy], task: Task, settings: Settings, workers: Alone | None = None
) -> dict[str, float]:
    """{"eval/…"}: avg@k, pass@k, maj@k and length with bootstrap intervals; greedy accuracy beside it. Each of several
    workers completes and verifies its share of the prompts, and all have the numbers.

    In a world of several agents, of whom one policy may be all: accuracy and reward of each, "agent/NAME/eval/…";
    nothing where some of them are not here.
    """
    if isinstance(policy, Mapping) and task.world is not None and policy.keys() < set(task.world.agents):
        return {}
    if not task.judges or len(task.held_out) == 0:
        return {}
    if task.world is not None and task.world.agents:
        return _evaluate_together(_by_agent(policy, task.world), task, task.world, settings, workers or Alone())
    assert not isinstance(policy, Mapping)
    spec, r = settings.evaluation, settings.rollout
    rows = [task.held_out[i] for i in range(min(spec.prompts, len(task.held_out)))]
    workers, k = workers or Alone(), spec.samples
    made = _outcomes(workers, policy, task, rows, held_out_spec(settings, task), k, settings.seed, "eval")

    def table(values: list[Any]) -> list[list[Any]]:
        return [values[i * k : (i + 1) * k] for i in range(len(rows))]

    out = summarise(
        table(made.correct),
        table(made.lengths),
        answers=table(made.answers) if made.answers else None,
        truncated=table(made.truncated),
        ks=sorted({1, k}),
    )
    if made.failed:
        out["eval/failed_share"] = sum(made.failed) / len(made.failed)
    if spec.greedy and task.latent is None:
        argmax = Sampling(0.0, max_tokens=r.max_tokens, stop=tuple(r.stop))
        greedy = _outcomes(workers, policy, task, rows, argmax, 1, 0, "greedy").correct
        out["eval/greedy"] = sum(greedy) / len(greedy)
    return out


def _by_agent(policy: Policy | Mapping[str, Policy], world: World) -> Mapping[str, Policy]:
    return policy if isinstance(policy, Mapping) else dict.fromkeys(world.agents, policy)


@dataclass
class _Outcomes:
    """What is measured of completions, in the order of their prompts."""

    correct: list[bool] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    """Empty where samples are never alike."""
    failed: list[bool] = field(default_factory=list)
    """Whether the world broke down; empty outside of one."""


def _outcomes(
    workers: Alone,
    policy: Policy,
    task: Task,
    rows: Sequence[dict[str, Any]],
    sampling: Sampling,
    samples: int,
    seed: int,
    purpose: str,
) -> _Outcomes:
    """Complete every row's prompt and verify, each worker its share."""
    share = workers.share(len(rows))
    own = _Outcomes()
    if mine := rows[share]:
        made = complete(policy, mine, sampling, samples, seed, purpose, task.world, share.start)
        own.correct = verdicts(task, made).tolist()
        own.lengths, own.truncated = made["lengths"].tolist(), made["truncated"].tolist()
        if task.answer is not None:
            own.answers = [task.answer(text) for text in made.texts]
        elif task.latent is None:  # samples that are no text are never alike
            own.answers = made.texts
        own.failed = [e.failed is not None for e in made.episodes]
    parts = [asdict(part) for part in workers.together(own)]
    return _Outcomes(**{name: [value for part in parts for value in part[name]] for name in parts[0]})


def _evaluate_together(
    policies: Mapping[str, Policy], task: Task, world: World, settings: Settings, workers: Alone
) -> dict[str, float]:
    spec, r = settings.evaluation, settings.rollout
    rows = [(task.held_out[i], -1) for i in range(min(spec.prompts, len(task.held_out)))]
    argmax = Sampling(0.0, max_tokens=r.max_tokens, stop=tuple(r.stop))
    ways = [("", held_out_spec(settings, task), spec.samples)] + ([("greedy_", argmax, 1)] if spec.greedy else [])
    share = workers.share(len(rows))
    out: dict[str, float] = {}
    for prefix, sampling, samples in ways:
        own: dict[str, list[tuple[bool, float]]] = {name: [] for name in policies}
        if mine := rows[share]:
            places = range(share.start, share.start + len(mine))
            seeds = [streams(samples, settings.seed, "eval", i) for i in places]
            prompts = {name: prompts_for(policy, name, mine) for name, policy in policies.items()}
            for name, table in play_together(policies, prompts, seeds, sampling, world).items():
                own[name] = [(e.success, e.total) for e in table.episodes if e.failed is None]
        everyone = workers.together(own)
        for name in policies:
            sound = [episode for part in everyone for episode in part[name]]
            if sound:
                out[f"agent/{name}/eval/{prefix}accuracy"] = sum(success for success, _ in sound) / len(sound)
                out[f"agent/{name}/eval/{prefix}reward"] = sum(total for _, total in sound) / len(sound)
    return out


def accuracy(
    policy: Policy | Mapping[str, Policy],
    task: Task,
    settings: Settings,
    workers: Alone | None = None,
    *,
    held_out: bool,
    key: int,
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
    spec = probe(settings, task)
    correct = _outcomes(workers or Alone(), policy, task, rows, spec, 1, settings.seed, f"probe{key}").correct
    return sum(correct) / len(correct)


def complete(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    sampling: Sampling,
    samples: int,
    seed: int,
    purpose: str,
    world: World | None = None,
    first: int = 0,
) -> Rollouts:
    """`samples` completions (episodes, in a world) of every row's prompt, seeds keyed by purpose, row and sample. The
    rows are counted from `first`.
    """
    parts = []
    per_wave = max(WAVE // samples, 1)
    for start in range(0, len(rows), per_wave):
        some = rows[start : start + per_wave]
        encoded = policy.encode_all([row["prompt"] for row in some])
        prompts = [Prompt(ids, row) for ids, row in zip(encoded, some, strict=True)]
        seeds = [streams(samples, seed, purpose, first + start + i) for i in range(len(some))]
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
