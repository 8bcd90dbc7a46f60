"""Episodes of a player that follows a script: to warm-start on, and to check a world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coterie.environments.answers import hear
from coterie.environments.base import Episode, World, row_of
from coterie.environments.hosts import Failed, Hosts
from coterie.errors import RunError

if TYPE_CHECKING:
    from coterie.policies.causal_lm import CausalLM

Script = Callable[[dict[str, Any], Sequence[Any]], str]
"""The next action, given the row and the observations so far. Of several agents each is given the row as it has it
(`row_of`), and as the first observation what it was told before it acted, "" for nothing."""


@dataclass
class Part:
    """One line of one agent in an episode."""

    agent: str
    told: Any
    episode: Episode = field(default_factory=Episode)


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
            episode.hear(step)
        return episode
    finally:
        hosts.close()


def played_together(world: World, row: dict[str, Any], script: Script) -> list[Part]:
    """One episode of several agents: their lines as they begin. Raises RunError as `played` does."""
    hosts = Hosts(world, 1)
    try:
        first = hosts.reset({0: row})[0]
        _sound(first)
        parts = [Part(name, said) for name, said in (first or dict.fromkeys(world.agents, "")).items()]
        acts = list(parts)
        for turn in range(world.turns):
            for part in acts:
                heard = [part.told, *part.episode.observations]
                part.episode.actions.append(script(row_of(row, part.agent), heard))
            answers = hosts.step_together({0: {p.agent: p.episode.actions[-1] for p in acts}})[0]
            _sound(answers)
            assert not isinstance(answers, Failed)
            heard, calls = hear(parts, answers)
            new = [Part(name, said) for name, said in calls.items()] if turn + 1 < world.turns else []
            acts = [part for part, step in heard if not step.done] + new
            parts += new
            if not acts:
                break
        return parts
    finally:
        hosts.close()


def line_of(policy: CausalLM, world: World, row: dict[str, Any], script: Script) -> tuple[list[int], list[bool]]:
    """The tokens of a scripted episode after its prompt, and which of them are actions.

    An action ends with EOS where it has fewer tokens than World.turn_tokens, as a sampled one would.
    """
    return _line(policy, world, row, "", played(world, row, script))


def lines_of(
    policy: CausalLM, world: World, row: dict[str, Any], script: Script, agent: str
) -> list[tuple[dict[str, Any], list[int], list[bool]]]:
    """The same of the lines of an agent, of every agent for "", each behind the row as the agent has it."""
    parts = [part for part in played_together(world, row, script) if agent in ("", part.agent)]
    rows = [row_of(row, part.agent) for part in parts]
    return [(own, *_line(policy, world, own, p.told, p.episode)) for own, p in zip(rows, parts, strict=True)]


def _line(
    policy: CausalLM, world: World, row: dict[str, Any], told: Any, episode: Episode
) -> tuple[list[int], list[bool]]:
    tokens = list(policy.reply(row.get("prompt"), told, [])) if told else []
    decided, eos = [False] * len(tokens), policy.tokenizer.eos_token_id
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
