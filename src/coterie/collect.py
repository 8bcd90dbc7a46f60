"""Draw, roll out, score and filter: from a recipe and a policy to the table an update learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from coterie.clock import Clock
from coterie.demonstrations import teller
from coterie.errors import RewardError, RunError
from coterie.evaluator import verdicts
from coterie.metrics import Collector, merge, record
from coterie.metrics import collect as gather
from coterie.offline.recorded import Recorded
from coterie.policies.causal_lm import CausalLM
from coterie.policies.flow.denoising import DenoisingPolicy
from coterie.rewards import process
from coterie.rewards.answer_span import answer_span
from coterie.rewards.batch import Batch
from coterie.rewards.matches import matches
from coterie.rewards.pairwise.contest import Contest
from coterie.rewards.pairwise.judge import Pairs
from coterie.rewards.speed import PASSES
from coterie.rollouts import Rollouts
from coterie.run import Run
from coterie.sampling import of_step
from coterie.streams import stream
from coterie.update import provide, score_live
from coterie.wiring import argument, wanted
from coterie.workers import gather_metrics, gather_rollouts


def collect(run: Run, step: int, clock: Clock) -> Rollouts | None:
    """A full batch of scored groups that pass the filters, drawing again where some do not. None: nothing passed."""
    filters = run.recipe.chain["selection.filters"]
    rounds = max((f.at(step).get("max_rounds", 1) for f in filters), default=1)
    want = run.settings.draw.prompts
    kept: list[Rollouts] = []
    seen: list[Rollouts] = []
    dropped = drawn = 0
    if isinstance(run.policy, CausalLM):
        run.policy.kept.forget()  # of the step before
    for round_ in range(rounds):
        have = sum(len(k.prompts) for k in kept)
        if run.recorded is not None:
            scored = recall(run, run.recorded, step, want - have, clock)
        else:
            made = roll_out_and_score(run, step, round_, want - have, clock)
            if made is None:
                break
            scored = made
        _tell(run, scored)
        batch = shape(run, scored, step, clock)
        seen.append(batch)
        drawn += len(batch.prompts)
        passed = _apply_filters(run, batch, step, clock) if filters else batch
        dropped += len(batch.prompts) - (len(passed.prompts) if passed is not None else 0)
        if passed is not None:
            kept.append(passed)
        if sum(len(k.prompts) for k in kept) >= want:
            break
    run.metrics["groups/drawn"], run.metrics["groups/dropped"] = float(drawn), float(dropped)
    run.seen = Rollouts.concat(seen) if seen else None
    return Rollouts.concat(kept) if kept else None


def _tell(run: Run, scored: Rollouts) -> None:
    """Report outcomes to a curriculum that learns from them."""
    observe = getattr(run.curriculum.instance, "observe", None)
    if observe is not None:
        scored = scored.sampled()
        correct = scored["correct"] if "correct" in scored else None
        observe(scored["prompt_index"], scored["rewards"], correct)


def recall(run: Run, recorded: Recorded, step: int, count: int, clock: Clock) -> Rollouts:
    """Draw `count` groups of recorded rollouts, with what they earned and the log-probs they were taken with. Where
    these are missing, those of the starting policy stand for them.
    """
    assert isinstance(run.policy, CausalLM)
    indices = run.curriculum({"size": len(recorded), "count": count, "seed": run.settings.seed}, step)
    with clock.phase("read"):
        rollouts, lacking = recorded.batch(run.policy, indices, of_step(run.recipe, run.task, step))
    if bool(lacking.any()):
        with clock.phase("reference"), torch.no_grad():
            start = run.start()
            logp = score_live(run, rollouts, {"logp_ref"}, step, start)["logp_ref"]
        old = torch.where(lacking.unsqueeze(-1), logp, rollouts["logp_old"])
        rollouts = rollouts.with_columns(logp_old=old)
        if run.needs_reference() and run.reference() is start:
            rollouts = rollouts.with_columns(logp_ref=logp)
    for name, read in (("answers", _answers), ("answer_mask", _answer_mask)):
        if name in wanted(run.recipe, "score"):
            rollouts = rollouts.with_columns(**{name: read(run, rollouts).to(run.policy.device)})
    return rollouts


def roll_out_and_score(run: Run, step: int, round_: int, count: int, clock: Clock) -> Rollouts | None:
    """`count` groups with what they earned: each worker makes and grades its share, and all see the whole.

    A rollout for which no function gave a value, or the process function none, leaves the table: it enters no mean.
    None where this is one of several policies, and it was not called.
    """
    outcomes, said, recorded = dict(run.metrics), len(run.notes), Collector()
    with gather(recorded):
        if run.away is not None:
            scored = run.away.collect(run, step, round_, count, clock)
        else:
            part = roll_out(run, step, round_, count, clock)
            scored = None if part is None else score(run, part, step, round_, clock, run.workers.share(count).start)
    if run.workers.size > 1:
        with clock.phase("gather"):
            scored = _whole(run, scored, outcomes, said)
    if scored is None:
        return None
    if "ticket" not in scored:
        scored = scored.with_columns(ticket=run.drawn + scored["groups"])
        run.drawn += len(scored.prompts)
    merge(gather_metrics(run.workers, recorded))
    valid = ~scored["rewards"].isnan()
    if not bool(valid.any()):
        errors = run.notes[said:]
        raise RewardError(
            "no reward function gave a value for any rollout of this batch",
            hint=f"the first: {errors[0]}" if errors else "they all answered None: check them",
        )
    return scored if bool(valid.all()) else scored.rows(valid)


def _whole(run: Run, part: Rollouts | None, before: dict[str, float], said: int) -> Rollouts:
    """The rollouts of all workers; what was counted and noted since `before` is added up."""
    counted = {name: value - before.get(name, 0.0) for name, value in run.metrics.items()}
    shares = run.workers.together((counted, run.notes[said:]))
    for name in {name for counts, _ in shares for name in counts}:
        run.metrics[name] = before.get(name, 0.0) + sum(counts.get(name, 0.0) for counts, _ in shares)
    run.notes[said:] = [note for _, notes in shares for note in notes]
    return gather_rollouts(run.workers, part, run.policy.device)


def roll_out(run: Run, step: int, round_: int, count: int, clock: Clock) -> Rollouts | None:
    """Draw `count` prompts and complete each `group_size` times. Seeds are keyed by step, round, prompt and sample.

    Of several workers each completes its share of the prompts, None where there are fewer prompts than workers.
    """
    if run.stage is not None:
        with clock.phase("generate"):
            return run.stage.rollouts(run, step, round_, count)
    indices = draw(run, step, count)
    with clock.phase("generate"):
        places = range(len(indices))[run.workers.share(len(indices))]
        if not places:
            return None
        return complete(run, [indices[p] for p in places], [(step, round_, p) for p in places], step, count)


def draw(run: Run, step: int, count: int) -> list[int]:
    """The next prompts of the training set to be rolled out, for `count` groups."""
    to_draw = getattr(run.strategy.instance, "to_draw", None)  # a strategy may have groups left, or begin more
    drawn = count if to_draw is None else to_draw(count)
    return run.curriculum({"size": len(run.task.train), "count": drawn, "seed": run.settings.seed}, step)


def complete(
    run: Run, indices: Sequence[int], keys: Sequence[tuple[int, ...]], step: int, count: int | None = None
) -> Rollouts:
    """Groups that answer these prompts, as the strategy makes them; `keys` begin their random streams."""
    s, each = run.settings, run.settings.rollout.group_size
    prompts = [run.prompt(index) for index in indices]
    seeds = [[stream(s.seed, "rollout", *key, k) for k in range(each)] for key in keys]
    entropy = "entropy_old" in wanted(run.recipe, "roll out")
    ahead = run.rewards.ahead

    def ended(number: int, text: str) -> None:
        ahead.ask(number, text, prompts[number // each].row)

    keeping = run.policy.kept.keeping(s.update.keep_mib * 2**20) if isinstance(run.policy, CausalLM) else nullcontext()
    with keeping:
        return run.strategy(
            {"policy": run.policy, "prompts": prompts, "seeds": seeds, "sampling": of_step(run.recipe, run.task, step),
             "entropy": entropy, "count": len(indices) if count is None else count, "prompt_at": run.prompt,
             "step": step, "ended": ended if ahead.functions else None, "world": run.task.world,
             "reference": teller(run.task), "verify": run.task.verify, "script": run.task.script,
             "grade": partial(_grade, run)},
            step,
        )  # fmt: skip


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
        new: dict[str, Any] = {"components": components, "rewards": _combine(components, run.reward_weights)}
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
            new["answers"] = _answers(run, rollouts)
        if "answer_mask" in wanted(run.recipe, "score"):
            new["answer_mask"] = _answer_mask(run, rollouts)
        if "matched" in wanted(run.recipe, "score"):
            new["matched"] = _matched(run, rollouts, argument(run.recipe, "matched", step))
        new = {k: _to(v, rollouts["groups"].device) for k, v in new.items()}
        rollouts = rollouts.with_columns(**new)
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
    return rows, _completion_ids(rollouts), steps


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


def _grade(run: Run, rows: Sequence[Any], samples: Sequence[Any]) -> Tensor:
    """What the reward functions make of samples that are no rollouts, one a row of the task; NaN for nothing. [N]"""
    scores = run.rewards.score([r.get("prompt") for r in rows], samples, rows, [[] for _ in rows])
    run.notes += scores.errors
    components = {k: torch.tensor(v, dtype=torch.float32) for k, v in scores.components.items()}
    return _combine(components, run.reward_weights)


def _preview_rewards(run: Run, rollouts: Rollouts, rewards: Tensor) -> Tensor:
    """The reward of what each decision foresees, and of the sample after the last; 0 where masked. [B,T]

    Where no function has a value for one of them, that reward is the sample's own.
    """
    mask = rollouts["mask"].cpu()
    own = rewards.unsqueeze(-1).expand(mask.shape)
    last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    earlier = mask & ~last
    out = torch.where(last, own, 0.0)
    if not bool(earlier.any()):
        return out
    row, place = earlier.nonzero(as_tuple=True)
    asked = [rollouts.prompts[g].row for g in rollouts["groups"].cpu()[row].tolist()]
    policy = cast(DenoisingPolicy, run.policy)
    foreseen = policy.samples(policy.previews(rollouts, row, place))
    value = _grade(run, asked, foreseen)
    return out.masked_scatter(earlier, torch.where(value.isnan(), own[earlier], value))


def _completion_ids(rollouts: Rollouts) -> list[list[int]]:
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


def _answers(run: Run, rollouts: Rollouts) -> Tensor:
    """Final answers by number; one that cannot be read shares its number with no other. [B]"""
    read = run.task.answer or str.strip
    numbers: dict[str, int] = {}
    texts = [read(text) for text in rollouts.texts]
    return torch.tensor([numbers.setdefault(t or f"\0{i}", len(numbers)) for i, t in enumerate(texts)])


def _answer_mask(run: Run, rollouts: Rollouts) -> Tensor:
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


def _to(value: Any, device: torch.device) -> Any:
    return {k: v.to(device) for k, v in value.items()} if isinstance(value, dict) else value.to(device)


def _combine(components: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Weighted sum, leaving out what a function did not answer; NaN where none did."""
    stacked = torch.stack([components[name] * weights[name] for name in components])
    total = torch.nansum(stacked, 0)
    return torch.where(stacked.isnan().all(0), math.nan, total)


def shape(run: Run, rollouts: Rollouts, step: int, clock: Clock) -> Rollouts:
    """Spread the reward over decisions where a piece reads that, then apply the shaping pieces."""
    chain = run.recipe.chain["rewards.shaping"]
    if "token_rewards" in wanted(run.recipe, "score"):
        last = rollouts["mask"] & (rollouts["mask"].flip(-1).cumsum(-1).flip(-1) == 1)
        rollouts = rollouts.with_columns(token_rewards=last * rollouts["rewards"].unsqueeze(-1))
    if chain:
        rollouts = provide(run, rollouts, "rewards.shaping", step, clock)
    for piece in chain:
        new = piece(run.table(rollouts, step), step)
        if piece.piece.writes == "token_rewards":
            rollouts = rollouts.with_columns(token_rewards=new, rewards=new.sum(-1))
        else:
            change = new - rollouts["rewards"]
            rollouts = rollouts.with_columns(rewards=new)
            if "token_rewards" in rollouts:
                last = rollouts["mask"] & (rollouts["mask"].flip(-1).cumsum(-1).flip(-1) == 1)
                rollouts = rollouts.with_columns(token_rewards=rollouts["token_rewards"] + last * change.unsqueeze(-1))
    if not bool(rollouts["rewards"].isfinite().all()):
        raise RunError("a reward is not finite after shaping", hint="look at the pieces of rewards.shaping")
    return rollouts


def _apply_filters(run: Run, batch: Rollouts, step: int, clock: Clock) -> Rollouts | None:
    table = run.table(provide(run, batch, "selection.filters", step, clock), step)
    keep = torch.ones_like(batch["rewards"], dtype=torch.bool)
    for piece in run.recipe.chain["selection.filters"]:
        keep &= piece(table, step) > 0
    keep = run.workers.first(keep)
    return select_groups(batch, keep) if bool(keep.any()) else None


def select_groups(batch: Rollouts, keep: Tensor) -> Rollouts:
    """The kept rows, with the prompts that no longer have any removed and groups renumbered."""
    out = batch.rows(keep)
    alive, groups = torch.unique(out["groups"], return_inverse=True)
    out = out.with_columns(groups=groups)
    out.prompts = [batch.prompts[i] for i in alive.tolist()]
    return out
