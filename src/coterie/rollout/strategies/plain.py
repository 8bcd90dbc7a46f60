"""Plain sampling: every rollout of a group is drawn independently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coterie.environments.base import World
from coterie.pieces import strategy
from coterie.rollout.episodes import play
from coterie.rollout.shared_episodes import play_alone
from coterie.rollouts import Prompt, Rollouts, Sampling


@strategy()
def plain(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    ended: Callable[[int, str], None] | None = None,
    world: World | None = None,
) -> Rollouts:
    """One independent rollout a seed, for every prompt. Those that have ended are graded while others go on.

    Where the task has a world, a rollout is an episode of many turns in it. In a world of several agents the policy is
    all of them, and each agent's rollouts of a prompt are a group.
    """
    if world is not None and world.agents:
        return play_alone(policy, prompts, seeds, sampling, world, entropy=entropy)
    if world is not None:
        return play(policy, prompts, seeds, sampling, world, entropy=entropy)
    return policy.rollout(prompts, seeds, sampling, entropy=entropy, ended=ended)
