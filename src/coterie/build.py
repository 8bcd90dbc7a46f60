"""From a recipe to a run: what it names is loaded, from the hub, disk or a checkpoint, and checked before that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from coterie import demonstrations, mismatch, wiring
from coterie.apart import Apart
from coterie.columns import BEFORE, SHOWN
from coterie.errors import RecipeError, did_you_mean
from coterie.offline.recorded import Recorded, load
from coterie.optim.master import MasterWeights, optimize
from coterie.optimizer_step import optimizer_at
from coterie.pieces import BoundPiece
from coterie.policies import kinds
from coterie.policies.named import load_policy
from coterie.recipe import Recipe
from coterie.rewards.functions import WeightedReward, rewards_of
from coterie.rewards.pairwise.contest import contest_of
from coterie.rewards.process import process_of
from coterie.rewards.remembering import check_alone
from coterie.rewards.runner import RewardRunner
from coterie.run import POLICIES, Run
from coterie.stage import Stage
from coterie.tasks.base import Task
from coterie.workers import Alone


def build_task(recipe: Recipe, recorded: Recorded | None = None) -> Task:
    """The task, built from its own settings alone (no model is loaded). It trains on the prompts that are recorded,
    where there are; then it may be missing, and there is nothing to evaluate.
    """
    if recorded is not None or "task" not in recipe.single:
        named = recipe.single["task"]({}, 0) if "task" in recipe.single else Task("recorded", [], [])
        return named if recorded is None else recorded.task(named)
    task = kinds.in_pictures(recipe, recipe.single["task"]({}, 0))
    if len(task.train) == 0:
        raise RecipeError(f"task '{task.name}' has no training prompts")
    return task


def build(
    recipe: Recipe, checkpoint: Path | None = None, *, to_train: bool = True, workers: Alone | None = None
) -> Run:
    """Load what the recipe names, from the hub, disk or a checkpoint. Fails before loading where it can.

    `workers` are the processes that train together, this one alone where none are given. Without `to_train`, recorded
    rollouts are left where they are: the policy can be evaluated and exported. Where several policies train together,
    this is the run of the first, which leads the others'.
    """
    if recipe.settings.apart.path is not None:
        check_apart(recipe)
    if not recipe.policies:
        if "optimizer" not in recipe.single:
            raise RecipeError(
                "the recipe has no optimizer", hint="optimizer=adamw; only one of several policies may rest"
            )
        recorded = load(recipe.settings) if recipe.settings.offline.rollouts is not None and to_train else None
        return _build(recipe, build_task(recipe, recorded), recorded, checkpoint, workers)
    task = build_task(recipe)
    check_together(recipe, task)
    folders = {name: None if checkpoint is None else checkpoint / POLICIES / name for name in recipe.policies}
    spec, runs = recipe.settings.apart, dict(recipe.policies)
    if spec.path is not None:
        if next(iter(runs)) in spec.train:  # it plays, with copies of those that are trained elsewhere
            runs = {n: own if n in spec.train else replace(own, single=_frozen(own)) for n, own in runs.items()}
        else:
            runs = {n: own for n, own in runs.items() if n in spec.train}
    late = spec.staleness > 0 and next(iter(recipe.policies)) not in runs
    players = [_build(own, task, None, folders[name], workers, late) for name, own in runs.items()]
    elsewhere = trained_elsewhere(recipe)
    lead, *lead.others = (player for player in players if player.name not in elsewhere)
    stage = Stage(lead, players) if spec.path is None else Apart(lead, players)
    for player in players:
        player.stage = stage
    if not stage.plays:
        lead.notes.append(
            f"{next(iter(recipe.policies))} is trained by the run that plays and evaluates; this one does neither"
        )
    return lead


def _frozen(recipe: Recipe) -> dict[str, BoundPiece]:
    return {slot: bound for slot, bound in recipe.single.items() if slot != "optimizer"}


def trained_elsewhere(recipe: Recipe) -> list[str]:
    """The policies that other runs train."""
    spec, trained = recipe.settings.apart, [n for n, own in recipe.policies.items() if "optimizer" in own.single]
    return [] if spec.path is None else [name for name in trained if name not in spec.train]


def check_apart(recipe: Recipe) -> None:
    """Raise RecipeError where what this run trains, of several policies, is not there or not to be trained apart."""
    if not recipe.policies:
        raise RecipeError(
            "apart is for several policies, and the recipe has one",
            where=recipe.where("apart.path"),
            hint="policies: {NAME: {}, OTHER: {}}, or leave apart out",
        )
    where, first = recipe.where("apart.train"), next(iter(recipe.policies))
    trained = [name for name, own in recipe.policies.items() if "optimizer" in own.single]
    for name in recipe.settings.apart.train:
        if name not in recipe.policies:
            raise RecipeError(f"no policy is named '{name}'", where=where, hint=did_you_mean(name, recipe.policies))
        if name not in trained:
            raise RecipeError(f"policy '{name}' has no optimizer and is not trained", where=where,
                              hint="leave it out: the run that plays has it")  # fmt: skip
    if first not in trained:
        raise RecipeError(
            f"the run that trains the first policy plays, and '{first}', the first, is not trained",
            where="policies",
            hint="write a policy that is trained first",
        )
    elsewhere = trained_elsewhere(recipe)
    if not elsewhere:
        raise RecipeError("this run trains every policy: there is nothing apart", where=where,
                          hint="name fewer in apart.train, or leave apart out")  # fmt: skip
    received = elsewhere if first in recipe.settings.apart.train else recipe.settings.apart.train
    for name in received:
        for bound in recipe.policies[name].chain["selection.filters"]:
            if bound.settings.get("max_rounds", 1) != 1:
                raise RecipeError(
                    f"selection.filters={bound.name} draws again, and '{name}' is trained on what another run plays",
                    where=f"policies.{name}",
                    hint=f"selection.filters.{bound.name}.max_rounds=1",
                )


def check_together(recipe: Recipe, task: Task) -> None:
    """Raise RecipeError where the policies are not who acts in the task's world, or cannot train together."""
    agents = () if task.world is None else task.world.agents
    if set(recipe.policies) != set(agents):
        raise RecipeError(
            f"the policies are {', '.join(recipe.policies)}, and in task '{task.name}' "
            + (f"{', '.join(agents)} act" if agents else "one policy acts"),
            where="policies",
            hint="name the policies as the world names its agents; without policies one plays them all"
            if agents
            else "leave policies out, or name a task with a world of several agents",
        )
    s, strategy = recipe.settings, recipe.single["rollout.strategy"].piece.slug
    refused = {
        f"rollout.strategy={strategy}": strategy != "plain",
        "offline.rollouts": s.offline.rollouts is not None,
    }
    for setting, is_set in refused.items():
        if is_set:
            raise RecipeError(f"{setting} is not for several policies", where="policies", hint="leave it out")
    if not any("optimizer" in own.single for own in recipe.policies.values()):
        raise RecipeError("no policy has an optimizer: nothing would be trained", where="policies")


def _build(
    recipe: Recipe,
    task: Task,
    recorded: Recorded | None,
    checkpoint: Path | None,
    workers: Alone | None,
    late: bool = False,
) -> Run:
    """The run of one policy on a task that is built. `late`: older weights of it play, in another run."""
    offline = recipe.settings.offline.rollouts is not None
    process = contest = judge = None
    functions: list[WeightedReward] = []
    kinds.check(recipe, task)
    wiring.check_teacher(recipe)
    wiring.check_reference(recipe)
    demonstrations.check(recipe, task)
    if recorded is not None:
        wiring.check_offline(recipe, recorded.columns, recorded.group_size)
        weights = recorded.weights or dict.fromkeys(recorded.scores or ["reward"], 1.0)
        if task.vocabulary is None and isinstance(recipe.settings.model, Mapping) and "init" in recipe.settings.model:
            task = replace(task, vocabulary=recorded.characters())
    elif offline:
        weights = {}
    else:
        process = process_of(task, recipe.process, recipe.settings.rewards)
        wiring.check(recipe, has_verifier=task.judges, has_process=process is not None, provides=task.provides)
        contest = contest_of(recipe.judge, recipe.single.get("rewards.pairwise.scheme"), recipe.settings)
        judge = None if contest is None else contest.judge
        functions, weights = rewards_of(task, recipe.functions, recipe.settings.rewards, judge)
    if process is not None:
        if not wiring.reads_steps(recipe):
            process = None  # the task has one and nobody asks
        elif process.name in weights:
            raise RecipeError(
                f"a reward and the process function are both named {process.name}", hint="give one a 'name'"
            )
    workers = workers or Alone()
    graders = functions if process is None else [*functions, process]
    check_alone(graders if judge is None else [*graders, judge], workers.size, recipe.settings.scale.engine)
    policy = load_policy(recipe, task, checkpoint)
    if recorded is not None:
        recorded.check_policy(policy)
    learner = workers.learner(policy)
    optimizer: torch.optim.Optimizer | MasterWeights
    if "optimizer" in recipe.single:
        optimizer = optimize(learner.parameters(), lambda parameters: optimizer_at(recipe, parameters, 0))
    else:  # of a policy that is frozen: never asked to step
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.0)
    said = mismatch.correct(recipe, policy.exact, late) if not offline else None
    columns = (wiring.wanted(recipe, "policy", "objective") - BEFORE - SHOWN) | {"logp"}
    run = Run(
        recipe=recipe,
        task=task,
        policy=policy,
        learner=learner,
        rewards=RewardRunner(graders, judge),
        optimizer=optimizer,
        curriculum=recipe.single["draw.curriculum"],
        strategy=recipe.single["rollout.strategy"],
        score_columns=columns,
        whole_groups=any(b.piece.whole_groups for _, b in recipe.all_bound()),
        reward_weights=weights,
        process=None if process is None else process.name,
        contest=contest,
        recorded=recorded,
        workers=workers,
    )
    run.notes += [*task.notes, *([said] if said else [])]
    if checkpoint is None and run.needs_start() and any("logp_old" in b.piece.required for _, b in recipe.all_bound()):
        run.notes.append("the data has no log-probs: those of the starting policy stand for them")
    if checkpoint is not None:
        run.restore(checkpoint)
    return run
