"""Draw, roll out, grade and filter: from a recipe and a policy to the table an update learns from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from coterie.clock import Clock
from coterie.demonstrations import teller
from coterie.errors import RewardError, RunError
from coterie.grading import answer_mask, answers, grade, score
from coterie.metrics import Collector, merge
from coterie.metrics import collect as gather
from coterie.offline.recorded import Recorded
from coterie.policies.causal_lm import CausalLM
from coterie.provide import provide, score_live
from coterie.reductions import last_decision
from coterie.rollouts import Rollouts
from coterie.run import Run
from coterie.sampling import of_step
from coterie.streams import streams
from coterie.wiring import wanted
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
    for name, read in (("answers", answers), ("answer_mask", answer_mask)):
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
    prompts = run.prompts(indices)
    seeds = [streams(each, s.seed, "rollout", *key) for key in keys]
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
             "grade": partial(grade, run)},
            step,
        )  # fmt: skip


def shape(run: Run, rollouts: Rollouts, step: int, clock: Clock) -> Rollouts:
    """Spread the reward over decisions where a piece reads that, then apply the shaping pieces."""
    chain = run.recipe.chain["rewards.shaping"]
    if "token_rewards" in wanted(run.recipe, "score"):
        last = last_decision(rollouts["mask"])
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
                last = last_decision(rollouts["mask"])
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
