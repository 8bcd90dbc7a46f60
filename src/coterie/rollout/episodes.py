"""Episodes of many turns: the policy acts, the world answers, and both are one line of tokens.

What the world said is context and never a decision; what is trained on are the very tokens that were sampled. Nothing
is rendered or tokenised twice: a turn only appends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from coterie.environments.base import Episode, World
from coterie.environments.hosts import Failed, Hosts
from coterie.errors import RunError
from coterie.metrics import record
from coterie.rollout.forks import Line, go_on, room, start, table
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream


def play(
    policy: Any,
    prompts: Sequence[Prompt],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    world: World,
    *,
    entropy: bool = False,
) -> Rollouts:
    """One episode a seed, for every prompt. All that are under way act together, then the world answers all of them.

    Gives the columns `turn`, `step_rewards` and `state_key`, and `episodes` for graders. An episode is truncated where
    the turns or the tokens ended it. One whose environment failed stays in the table without a reward; its seeds and
    those of the others do not depend on each other.
    """
    owner = [g for g, own in enumerate(seeds) for _ in own]
    seed = [s for own in seeds for s in own]
    blank = start(policy, prompts)
    lines: list[Line] = [blank[g] for g in owner]
    episodes = [Episode() for _ in owner]
    turns: list[list[int]] = [[] for _ in owner]
    hosts = Hosts(world, len(owner))
    try:
        state = _begun(hosts, prompts, owner, episodes)
        live = [i for i in range(len(owner)) if episodes[i].failed is None]
        for turn in range(world.turns):
            live = [i for i in live if room(policy, prompts[owner[i]], sampling) > len(lines[i])]
            if not live:
                break
            forks = [(lines[i], [stream(seed[i], "turn", turn)]) for i in live]
            made = go_on(policy, prompts, forks, sampling, entropy, at_most=world.turn_tokens)
            actions: dict[int, str] = {}
            for i, line in zip(live, made, strict=True):
                said = line.tokens[len(lines[i]) :].tolist()
                turns[i] += [turn] * len(said)
                lines[i] = line
                out_of_room = line.truncated and len(line) >= room(policy, prompts[owner[i]], sampling)
                if not out_of_room:  # else the action is not whole
                    actions[i] = policy.decode(said, sampling.stop)
                    episodes[i].actions.append(actions[i])
                    episodes[i].states.append(state[i])
            for i, step in hosts.step(actions).items():
                episode = episodes[i]
                if isinstance(step, Failed):
                    episode.failed = str(step)
                    continue
                episode.rewards.append(float(step.reward))
                episode.infos.append(dict(step.info))
                episode.observations.append(step.observation)
                episode.done = step.done
                state[i] = str(step.info.get("state", step.observation))
                if step.done:
                    lines[i] = replace(lines[i], truncated=False)
                elif turn + 1 < world.turns:
                    ids = policy.reply(prompts[owner[i]].row.get("prompt"), step.observation, lines[i].tokens.tolist())
                    turns[i] += [-1] * len(ids)
                    lines[i] = lines[i].followed_by(ids)
                else:
                    lines[i] = replace(lines[i], truncated=True)
            live = [i for i in actions if episodes[i].failed is None and not episodes[i].done]
    finally:
        hosts.close()
    _report(episodes, world)
    return _table(policy, prompts, lines, sampling, episodes, turns)


def _begun(hosts: Hosts, prompts: Sequence[Prompt], owner: list[int], episodes: list[Episode]) -> dict[int, str]:
    """Reset everybody; the key of each first state."""
    state = {}
    for i, key in hosts.reset({i: prompts[g].row for i, g in enumerate(owner)}).items():
        if isinstance(key, Failed):
            episodes[i].failed = str(key)
        state[i] = str(key if key is not None else prompts[owner[i]].row.get("prompt"))
    return state


def _report(episodes: Sequence[Episode], world: World) -> None:
    failed = [e.failed for e in episodes if e.failed is not None]
    record("episode/failed_share", len(failed) / len(episodes))
    record("episode/turns", torch.tensor([float(e.turns) for e in episodes]))
    record("episode/done_share", sum(e.done for e in episodes) / len(episodes))
    if len(failed) > world.most_failed * len(episodes):
        raise RunError(
            f"{len(failed)} of {len(episodes)} episodes failed; the first: {failed[0]}",
            hint="mend the environment, or allow more failures (most_failed of its World)",
        )


def _table(
    policy: Any,
    prompts: Sequence[Prompt],
    lines: list[Line],
    sampling: Sampling,
    episodes: list[Episode],
    turns: list[list[int]],
) -> Rollouts:
    width = max((max(own, default=0) + 1 for own in turns), default=1)  # a last turn that was cut off has no state
    rewards = torch.zeros(len(lines), width)
    keys = torch.full((len(lines), width), -1, dtype=torch.int64)
    for i, episode in enumerate(episodes):
        rewards[i, : len(episode.rewards)] = torch.tensor(episode.rewards)
        keys[i, : len(episode.states)] = torch.tensor([key_of(s) for s in episode.states], dtype=torch.int64)
    out = table(policy, prompts, lines, sampling)
    turn = torch.full(out["mask"].shape, -1, dtype=torch.int64)
    for i, own in enumerate(turns):
        turn[i, : len(own)] = torch.tensor(own, dtype=torch.int64)
    device = out["mask"].device
    out = out.with_columns(
        turn=torch.where(out["mask"], turn.to(device), -1), step_rewards=rewards.to(device), state_key=keys.to(device)
    )
    return replace(out, episodes=episodes)


def key_of(state: Any) -> int:
    """A number for a state: equal for equal states, and for others hardly ever."""
    return int.from_bytes(hashlib.blake2b(str(state).encode(), digest_size=7).digest(), "big")
