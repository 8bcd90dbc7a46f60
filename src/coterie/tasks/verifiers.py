"""Tasksets of the package `verifiers`."""

from __future__ import annotations

import functools

from coterie.adapters.verifiers import VerifiersWorld, load, messages
from coterie.environments.base import World, episode_return
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward, resolve
from coterie.tasks.base import Task
from coterie.tasks.split import Row, split_disjoint


@task()
def verifiers(
    *,
    taskset: str,
    success: float = 1.0,
    limit: int | None = None,
    held_out: float = 0.1,
    timeout: float | None = None,
    seed: int = 0,
) -> Task:
    """A taskset of `verifiers` (0.4 and later), whose tasks are a prompt and rewards: one turn, graded by its own code.

    taskset: file.py:function or package.module:function that gives the taskset. success: the sum of rewards from which
    an answer is right. limit: its first tasks. held_out: a fraction or a number of tasks. timeout: seconds that grading
    may take, in a process of its own. Tasks that need containers, tool servers or a harness are refused.
    """
    tasks = load(resolve(taskset), limit)
    rows: list[Row] = [{"prompt": messages(t), "number": i} for i, t in enumerate(tasks)]
    train, held, notes = split_disjoint(rows, held_out, seed, taskset)
    world = World(functools.partial(VerifiersWorld, tasks, success=success), turns=1, timeout=timeout)
    return Task("verifiers", train, held, rewards=[WeightedReward(episode_return, "rewards")], world=world, notes=notes)
