"""Episodes of many turns: the policy acts, the world answers, and both are one line of tokens.

What the world said is context and never a decision; what is trained on are the very tokens that were sampled. Nothing
is rendered or tokenised twice: a turn only appends, unless the world's context is written anew (`contexts`).
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
from coterie.rollout.contexts import Moment, Segment, cut
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
    those of the others do not depend on each other. With a context an episode has a row for each of its segments, in
    order, and `turns_after`; turns are counted in the row.
    """
    if world.timeout is not None and len(prompts) > 1 and sum(map(len, seeds)) > world.processes:
        half = len(prompts) // 2
        parts = [(prompts[:half], seeds[:half]), (prompts[half:], seeds[half:])]
        return Rollouts.concat([play(policy, *part, sampling, world, entropy=entropy) for part in parts])
    owner = [g for g, own in enumerate(seeds) for _ in own]
    seed = [s for own in seeds for s in own]
    blank = start(policy, prompts)
    rows = [[Segment(blank[g])] for g in owner]
    episodes = [Episode() for _ in owner]
    known: dict[str, Sequence[int]] = {}
    hosts, memory = Hosts(world, len(owner)), policy.remember()
    try:
        state = _begun(hosts, prompts, owner, episodes)
        live = [i for i in range(len(owner)) if episodes[i].failed is None]
        for turn in range(world.turns):
            now = [own[-1] for own in rows]
            live = [i for i in live if room(policy, prompts[owner[i]], sampling) > len(now[i].line)]
            if not live:
                break
            forks = [(now[i].line, [stream(seed[i], "turn", turn)]) for i in live]
            made = go_on(policy, prompts, forks, sampling, entropy, at_most=world.turn_tokens)
            actions: dict[int, str] = {}
            for i, line in zip(live, made, strict=True):
                said = line.tokens[len(now[i].line) :].tolist()
                now[i].starts.append(len(now[i].line))
                now[i].turns += [turn - now[i].first] * len(said)
                now[i].line = line
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
                episode.hear(step)
                state[i] = str(step.info.get("state", step.observation))
                if step.done:
                    now[i].line = replace(now[i].line, truncated=False)
                elif turn + 1 < world.turns:
                    rows[i] = _heard(policy, prompts[owner[i]], rows[i], blank[owner[i]], episode, world, known)
                else:
                    now[i].line = replace(now[i].line, truncated=True)
            live = [i for i in actions if episodes[i].failed is None and not episodes[i].done]
    finally:
        hosts.close()
        memory.close()
    report(episodes, world)
    return table_of(policy, prompts, rows, sampling, episodes, world)


def _begun(hosts: Hosts, prompts: Sequence[Prompt], owner: list[int], episodes: list[Episode]) -> dict[int, str]:
    """Reset everybody; the key of each first state."""
    state = {}
    for i, key in hosts.reset({i: prompts[g].row for i, g in enumerate(owner)}).items():
        if isinstance(key, Failed):
            episodes[i].failed = str(key)
        state[i] = str(key if key is not None else prompts[owner[i]].row.get("prompt"))
    return state


def report(episodes: Sequence[Episode], world: World) -> None:
    """Record how episodes went. Raises RunError where more of them failed than the world may have."""
    failed = [e.failed for e in episodes if e.failed is not None]
    record("episode/failed_share", len(failed) / len(episodes))
    record("episode/turns", torch.tensor([float(e.turns) for e in episodes]))
    record("episode/done_share", sum(e.done for e in episodes) / len(episodes))
    if len(failed) > world.most_failed * len(episodes):
        raise RunError(
            f"{len(failed)} of {len(episodes)} episodes failed; the first: {failed[0]}",
            hint="mend the environment, or allow more failures (most_failed of its World)",
        )


def _heard(
    policy: Any,
    prompt: Prompt,
    rows: list[Segment],
    blank: Line,
    episode: Episode,
    world: World,
    known: dict[str, Sequence[int]],
) -> list[Segment]:
    """The segments of an episode after the world has answered: the last one goes on, or a new one follows.

    `known` are tokens of plain text that was heard before: it has the same after every action.
    """
    question, last, heard = prompt.row.get("prompt"), rows[-1], episode.observations[-1]

    def reply(said: Sequence[int]) -> Sequence[int]:
        if not (isinstance(question, str) and isinstance(heard, str)):
            return policy.reply(question, heard, said)
        if heard not in known:
            known[heard] = policy.reply(question, heard, said)
        return known[heard]

    ids = reply(last.line.tokens.tolist())
    last.turns += [-1] * len(ids)
    last.line = last.line.followed_by(ids)
    if world.context is None:
        return rows
    after = cut(last, blank, world.context, Moment(episode, last.spans(), policy.encode_completion, reply))
    return rows if after is last else [*rows, after]


def table_of(
    policy: Any,
    prompts: Sequence[Prompt],
    rows: list[list[Segment]],
    sampling: Sampling,
    episodes: list[Episode],
    world: World,
) -> Rollouts:
    """Every segment is a row, but the last where there was no room to decide anything in it."""
    kept = [own[:-1] if len(own) > 1 and max(own[-1].turns) < 0 else own for own in rows]
    segments = [replace(s, line=replace(s.line, truncated=own[-1].line.truncated)) for own in kept for s in own]
    whose = [episode for episode, own in zip(episodes, kept, strict=True) for _ in own]
    counts = [max(s.turns, default=-1) + 1 for s in segments]
    width = max(*counts, 1)  # a last turn that was cut off has no state
    rewards = torch.zeros(len(segments), width)
    keys = torch.full((len(segments), width), -1, dtype=torch.int64)
    for i, (episode, segment, count) in enumerate(zip(whose, segments, counts, strict=True)):
        given, states = (x[segment.first : segment.first + count] for x in (episode.rewards, episode.states))
        rewards[i, : len(given)] = torch.tensor(given)
        keys[i, : len(states)] = torch.tensor([key_of(s) for s in states], dtype=torch.int64)
    out = table(policy, prompts, [s.line for s in segments], sampling)
    turn = torch.full(out["mask"].shape, -1, dtype=torch.int64)
    for i, segment in enumerate(segments):
        turn[i, : len(segment.turns)] = torch.tensor(segment.turns, dtype=torch.int64)
    device = out["mask"].device
    out = out.with_columns(
        turn=torch.where(out["mask"], turn.to(device), -1), step_rewards=rewards.to(device), state_key=keys.to(device)
    )
    if world.context is not None:
        ends = [own[-1].first + max(own[-1].turns, default=-1) + 1 for own in kept for _ in own]
        after = [end - s.first - count for end, s, count in zip(ends, segments, counts, strict=True)]
        out = out.with_columns(turns_after=torch.tensor(after, device=device))
    return replace(out, episodes=whose)


def key_of(state: Any) -> int:
    """A number for a state: equal for equal states, and for others hardly ever."""
    return int.from_bytes(hashlib.blake2b(str(state).encode(), digest_size=7).digest(), "big")
