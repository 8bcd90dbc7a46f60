"""Episodes of a player that follows a script: to warm-start on, and to check a world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from coterie.environments.base import Episode, World
from coterie.environments.hosts import Failed, Hosts
from coterie.errors import RunError

if TYPE_CHECKING:
    from coterie.policies.causal_lm import CausalLM

Script = Callable[[dict[str, Any], Sequence[Any]], str]
"""The next action, given the row and the observations so far."""


def played(world: World, row: dict[str, Any], script: Script) -> Episode:
    """One episode. Raises RunError where the environment breaks down: with a script it must not."""
    hosts = Hosts(world, 1)
    try:
        episode = Episode()
        _sound(hosts.reset({0: row})[0])
        while not episode.done and episode.turns < world.turns:
            episode.actions.append(script(row, episode.observations))
            step = hosts.step({0: episode.actions[-1]})[0]
            _sound(step)
            assert not isinstance(step, Failed)
            episode.rewards.append(float(step.reward))
            episode.infos.append(dict(step.info))
            episode.observations.append(step.observation)
            episode.done = step.done
        return episode
    finally:
        hosts.close()


def line_of(policy: CausalLM, world: World, row: dict[str, Any], script: Script) -> tuple[list[int], list[bool]]:
    """The tokens of a scripted episode after its prompt, and which of them are actions.

    An action ends with EOS where it has fewer tokens than World.turn_tokens, as a sampled one would.
    """
    tokens: list[int] = []
    decided: list[bool] = []
    episode, eos = played(world, row, script), policy.tokenizer.eos_token_id
    for turn, action in enumerate(episode.actions):
        said = list(policy.encode_completion(action))
        if eos is not None and (world.turn_tokens is None or len(said) < world.turn_tokens):
            said.append(eos)
        tokens += said
        decided += [True] * len(said)
        if turn + 1 < episode.turns:
            heard = policy.reply(row.get("prompt"), episode.observations[turn], tokens)
            tokens += heard
            decided += [False] * len(heard)
    return tokens, decided


def _sound(answer: Any) -> None:
    if isinstance(answer, Failed):
        raise RunError(f"an episode of the task's script failed: {answer}", hint="mend the environment or its script")
