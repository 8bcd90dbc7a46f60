"""What rollouts earned: reward components and their sum, the verifier's verdict, and what pieces read of texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from coterie.clock import Clock
from coterie.evaluator import verdicts
from coterie.metrics import record
from coterie.policies.flow.denoising import DenoisingPolicy
from coterie.reductions import combine, last_decision
from coterie.rewards import process
from coterie.rewards.answer_span import answer_span
from coterie.rewards.batch import Batch
from coterie.rewards.matches import matches
from coterie.rewards.pairwise.contest import Contest
from coterie.rewards.pairwise.judge import Pairs
from coterie.rewards.speed import PASSES
from coterie.rollouts import Rollouts
from coterie.run import Run
from coterie.streams import stream
from coterie.wiring import argument, wanted


def score(run: Run, rollouts: Rollouts, step: int, round_: int, clock: Clock, first: int = 0) -> Rollouts:
    """Reward components by the task's and the user's functions and by the pairwise judge, their weighted sum, and the
    verifier's verdict; a score for each step where there is a process function.

    The reward is NaN where no function gave a value, or the process function none, or the episode failed. `first` is
    the place in the batch of the rollouts' first group.
    """
    with clock.phase("score"):
        rows, ids, steps = _shown_to_graders(run, rollouts)
        scores = run.rewards.score([r.get("prompt") for r in rows], rollouts.texts, rows, ids)
        run.notes += scores.errors
        if run.contest is not None:
            scores.components[run.contest.judge.name] = _compare(run, run.contest, rollouts, step, round_, first)
        components = {k: torch.tensor(v, dtype=torch.float32) for k, v in scores.components.items()}
        new: dict[str, Any] = {"components": components, "rewards": combine(components, run.reward_weights)}
        if rollouts.episodes:  # whatever a function makes of what is left of a failed one
            failed = torch.tensor([e.failed is not None for e in rollouts.episodes])
            new["rewards"] = new["rewards"].masked_fill(failed, math.nan)
        if run.task.verify is not None or rollouts.episodes:
            known = components.get(run.task.verdict or "")
            new["correct"] = known > 0.5 if known is not None else verdicts(run.task, rollouts)
        for outcome in ("error", "timeout", "none"):
            count = sum(c.get(outcome, 0) for c in scores.outcomes.values())
            run.metrics[f"reward/{outcome}s"] = run.metrics.get(f"reward/{outcome}s", 0.0) + count
        if "preview_rewards" in wanted(run.recipe, "score"):
            new["preview_rewards"] = _preview_rewards(run, rollouts, new["rewards"])
        if "answers" in wanted(run.recipe, "score"):
            new["answers"] = answers(run, rollouts)
        if "answer_mask" in wanted(run.recipe, "score"):
            new["answer_mask"] = answer_mask(run, rollouts)
        if "matched" in wanted(run.recipe, "score"):
            new["matched"] = _matched(run, rollouts, argument(run.recipe, "matched", step))
        rollouts = rollouts.with_columns(**new).to(rollouts["groups"].device)
        if run.process is not None:
            marks = scores.steps[run.process]
            rollouts = rollouts.with_columns(**process.columns([s for s, _ in steps], marks, rollouts["mask"]))
            silent = torch.tensor([m is None for m in marks], device=rollouts["rewards"].device)
            rollouts = rollouts.with_columns(rewards=rollouts["rewards"].masked_fill(silent, math.nan))
        return rollouts


def _shown_to_graders(
    run: Run, rollouts: Rollouts
) -> tuple[list[Any], list[list[int]], list[tuple[list[int], list[str]]]]:
    """What the functions are shown of each rollout: its row of the task and its tokens. Also the steps of each, where
    there is a process function.
    """
    rows: list[Any] = [rollouts.prompts[g].row for g in rollouts["groups"].tolist()]
    if "passes" in rollouts:
        rows = [{**row, PASSES: n} for row, n in zip(rows, rollouts["passes"].tolist(), strict=True)]
    if rollouts.episodes:
        rows = [{**row, "episode": episode} for row, episode in zip(rows, rollouts.episodes, strict=True)]
    steps = _steps(run, rollouts) if run.process is not None else []
    if steps:
        rows = [{**row, process.STEPS: texts} for row, (_, texts) in zip(rows, steps, strict=True)]
    return rows, completion_ids(rollouts), steps


def teach(run: Run) -> None:
    """Let reward functions that learn see what was rolled out in this step, filtered groups included."""
    if run.seen is not None and run.rewards.memories:
        seen = run.seen.sampled()
        rows, ids, _ = _shown_to_graders(run, seen)
        run.rewards.learn(Batch([r.get("prompt") for r in rows], seen.texts, rows, ids))


def _compare(run: Run, contest: Contest, rollouts: Rollouts, step: int, round_: int, first_group: int) -> list[float]:
    """What the pairwise judge and its scheme make of each rollout, NaN where nothing."""
    texts, groups = rollouts.texts, rollouts["groups"].tolist()

    def pairs_of(first: list[int], second: list[int]) -> Pairs:
        rows = [rollouts.prompts[groups[i]].row for i in first]
        return Pairs([r.get("prompt") for r in rows], [texts[i] for i in first], rows, [], [texts[j] for j in second])

    def seed(group: int) -> int:
        return stream(run.settings.seed, "pairwise", step, round_, first_group + group)

    held = contest.hold(groups, pairs_of, run.rewards.compare, seed)
    run.notes += held.errors
    decided = held.verdicts["first"] + held.verdicts["second"]
    missing = sum(held.verdicts[kind] for kind in ("none", "error", "timeout"))
    ties = held.verdicts["tie"]
    for name, count in {"verdicts": decided + ties, "ties": ties, "failures": missing}.items():
        run.metrics[f"pairwise/{name}"] = run.metrics.get(f"pairwise/{name}", 0.0) + count
    if decided:
        record("pairwise/first_share", held.verdicts["first"] / decided)
    return held.rewards


def grade(run: Run, rows: Sequence[Any], samples: Sequence[Any]) -> Tensor:
    """What the reward functions make of samples that are no rollouts, one a row of the task; NaN for nothing. [N]"""
    scores = run.rewards.score([r.get("prompt") for r in rows], samples, rows, [[] for _ in rows])
    run.notes += scores.errors
    components = {k: torch.tensor(v, dtype=torch.float32) for k, v in scores.components.items()}
    return combine(components, run.reward_weights)


def _preview_rewards(run: Run, rollouts: Rollouts, rewards: Tensor) -> Tensor:
    """The reward of what each decision foresees, and of the sample after the last; 0 where masked. [B,T]

    Where no function has a value for one of them, that reward is the sample's own.
    """
    mask = rollouts["mask"].cpu()
    own = rewards.unsqueeze(-1).expand(mask.shape)
    last = last_decision(mask)
    earlier = mask & ~last
    out = torch.where(last, own, 0.0)
    if not bool(earlier.any()):
        return out
    row, place = earlier.nonzero(as_tuple=True)
    asked = [rollouts.prompts[g].row for g in rollouts["groups"].cpu()[row].tolist()]
    policy = cast(DenoisingPolicy, run.policy)
    foreseen = policy.samples(policy.previews(rollouts, row, place))
    value = grade(run, asked, foreseen)
    return out.masked_scatter(earlier, torch.where(value.isnan(), own[earlier], value))


def completion_ids(rollouts: Rollouts) -> list[list[int]]:
    """Each row's tokens up to its last decision on one, those that were put between its decisions included; none
    without tokens."""
    if "tokens" not in rollouts:
        return [[] for _ in rollouts.texts]
    mask = rollouts["mask"] & ~rollouts["schedules"] if "schedules" in rollouts else rollouts["mask"]
    ends = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(-1)
    return [t[:n] for t, n in zip(rollouts["tokens"].tolist(), ends.tolist(), strict=True)]


def _steps(run: Run, rollouts: Rollouts) -> list[tuple[list[int], list[str]]]:
    """For each row, the step of each of its decisions, and the texts of the steps."""
    chosen = [t[m].tolist() for t, m in zip(rollouts["tokens"].cpu(), rollouts["mask"].cpu(), strict=True)]
    texts = {token: run.policy.decode([token]) for token in {t for row in chosen for t in row}}
    stop, separator = rollouts.sampling.stop, run.settings.rewards.step_separator
    steps = [process.split([texts[t] for t in row], separator, stop) for row in chosen]

    def decode(tokens: list[int]) -> str:
        return run.policy.decode(tokens, stop)

    return [(s, process.texts_of_steps(s, row, decode)) for s, row in zip(steps, chosen, strict=True)]


def answers(run: Run, rollouts: Rollouts) -> Tensor:
    """Final answers by number; one that cannot be read shares its number with no other. [B]"""
    read = run.task.answer or str.strip
    numbers: dict[str, int] = {}
    texts = [read(text) for text in rollouts.texts]
    return torch.tensor([numbers.setdefault(t or f"\0{i}", len(numbers)) for i, t in enumerate(texts)])


def answer_mask(run: Run, rollouts: Rollouts) -> Tensor:
    """Which decisions of each row spell its final answer. [B,T] bool"""
    read = run.task.answer or (lambda text: text)

    def decode(tokens: Sequence[int]) -> str:
        return run.policy.decode(tokens, rollouts.sampling.stop)

    out = torch.zeros_like(rollouts["mask"])
    for row, (tokens, mask) in enumerate(zip(rollouts["tokens"].cpu(), rollouts["mask"].cpu(), strict=True)):
        span = answer_span(tokens[mask].tolist(), decode, read)
        out[row, mask.nonzero().squeeze(-1)[span.start : span.stop]] = True
    return out


def _matched(run: Run, rollouts: Rollouts, pattern: str) -> Tensor:
    """Which decisions of each row are in a match of the pattern. [B,T] bool"""
    hits = [hit for texts in run.policy.decision_texts(rollouts) or [] for hit in matches(texts, pattern)]
    mask = rollouts["mask"].cpu()
    return torch.zeros_like(mask).masked_scatter(mask, torch.tensor(hits, dtype=torch.bool))
