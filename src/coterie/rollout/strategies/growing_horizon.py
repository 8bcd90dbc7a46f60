"""ScalingInter-RL's roll-out: episodes may take more turns as training goes on (AgentGym-RL, arXiv:2509.08755)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coterie.environments.base import World
from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.pieces import strategy
from coterie.rollout.episodes import play
from coterie.rollouts import Prompt, Rollouts, Sampling


@strategy(paper="arXiv:2509.08755", decisions="tokens")
def growing_horizon(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    step: int,
    world: World,
    *,
    turns: list[int],
    every: int = 100,
) -> Rollouts:
    """One independent episode a seed of at most turns[k] turns in the k-th `every` steps of the run, and of the last
    number from then on. A cap, not a reward: what is cut off is truncated.

    Only the number of completed steps counts, so a resumed run is where it would have been. Evaluations have the
    world's own number of turns, and so has every rollout at the most.
    """
    if not turns or min(turns) < 1 or every < 1:
        raise RecipeError(
            f"growing_horizon needs turns and steps of 1 or more, got {turns} and every={every}",
            where="rollout.strategy=growing_horizon",
            hint="rollout.strategy.turns=[4,8,16]",
        )
    most = min(horizon(step, turns, every), world.turns)
    record("horizon/turns", float(most))
    return play(policy, prompts, seeds, sampling, replace(world, turns=most), entropy=entropy)


def horizon(step: int, turns: list[int], every: int) -> int:
    """The most turns in an episode that is rolled out after `step` completed steps."""
    return turns[min(step // every, len(turns) - 1)]
