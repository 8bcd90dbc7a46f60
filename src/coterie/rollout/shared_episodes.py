"""Episodes of several agents: each has a line of tokens of its own, or several, and the world answers all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from coterie.environments.answers import hear
from coterie.environments.base import Episode, Step, World, row_of
from coterie.environments.hosts import Failed, Hosts
from coterie.errors import RunError
from coterie.rollout.contexts import Segment
from coterie.rollout.episodes import report, table_of
from coterie.rollout.forks import Line, go_on, room, start
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream


@dataclass
class Seat:
    """One line of one agent in one episode."""

    game: int
    agent: str
    line: Line
    state: str
    episode: Episode = field(default_factory=Episode)
    turns: list[int] = field(default_factory=list)
    """Turn of each token, -1 where it was put there."""
    others: list[float] = field(default_factory=list)
    """What the other agents earned, by turn."""


def prompts_for(policy: Any, agent: str, rows: Sequence[tuple[Mapping[str, Any], int]]) -> list[Prompt]:
    """The prompts of an agent, from rows of the task with their indices; graders see in `agent` whose they are."""
    out = []
    for row, index in rows:
        own = row_of(row, agent)
        out.append(Prompt(policy.encode(own["prompt"]), own, index))
    return out


def play_alone(
    policy: Any,
    prompts: Sequence[Prompt],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    world: World,
    *,
    entropy: bool = False,
) -> Rollouts:
    """Self-play: one policy is every agent. Groups are those of prompt and agent, never of two agents."""
    rows = [(p.row, p.index) for p in prompts]
    everyone = {name: prompts_for(policy, name, rows) for name in world.agents}
    tables = play_together(dict.fromkeys(world.agents, policy), everyone, seeds, sampling, world, entropy=entropy)
    out = Rollouts.concat(list(tables.values()))
    report(out.episodes, world)
    return out


def play_together(
    policies: Mapping[str, Any],
    prompts: Mapping[str, Sequence[Prompt]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    world: World,
    *,
    entropy: bool = False,
) -> dict[str, Rollouts]:
    """One episode a seed, for every prompt; prompts are by agent, in one order. A table for each agent that acted.

    A table has a row for each line of its agent. Rows of one prompt are a group, and `episode` says which rows, of
    whichever table, were played together. Where a line is out of room or rounds are up, what is under way is truncated.
    An episode whose world failed fails for all.
    """
    owner = [g for g, own in enumerate(seeds) for _ in own]
    seed = [s for own in seeds for s in own]
    blank = {name: start(policy, prompts[name]) for name, policy in policies.items()}
    hosts = Hosts(world, len(owner))
    games: list[_Game] = []
    try:
        rows = [{k: v for k, v in p.row.items() if k != "agent"} for p in prompts[world.agents[0]]]
        for i, first in hosts.reset({i: rows[g] for i, g in enumerate(owner)}).items():
            games.append(game := _Game(i))
            if isinstance(first, Failed) or not isinstance(first, Mapping | None):
                game.seats = [_seat(policies, prompts, blank, i, owner[i], n, "") for n in policies]
                game.fail(first if isinstance(first, Failed) else Failed(f"reset gave {type(first).__name__}"))
                continue
            said = dict.fromkeys(world.agents, "") if first is None else dict(first)
            game.seats = [_seat(policies, prompts, blank, i, owner[i], n, text) for n, text in said.items()]
            game.acts = list(game.seats)
        for turn in range(world.turns):
            for name, policy in policies.items():
                _act(policy, prompts[name], name, games, seed, turn, sampling, entropy, world)
            actions = {g.number: {s.agent: s.episode.actions[-1] for s in g.acts} for g in games if g.acts}
            if not actions:
                break
            last = turn + 1 == world.turns
            for i, answer in hosts.step_together(actions).items():
                if isinstance(answer, Failed):
                    games[i].fail(answer)
                    continue
                calls = games[i].hear(answer, policies, prompts, owner[i], last)
                if not last:
                    for name, said_now in calls.items():
                        seat = _seat(policies, prompts, blank, i, owner[i], name, said_now)
                        games[i].seats.append(seat)
                        games[i].acts.append(seat)
    finally:
        hosts.close()
    seats = [s for g in games for s in g.seats if s.episode.actions or s.episode.failed is not None]
    by_agent = {name: [s for s in seats if s.agent == name] for name in policies}
    return {n: _table(policies[n], prompts[n], own, sampling, world) for n, own in by_agent.items() if own}


class _Game:
    """The seats of one episode, and who acts now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.seats: list[Seat] = []
        self.acts: list[Seat] = []

    def fail(self, why: Failed) -> None:
        for seat in self.seats:
            seat.episode.failed = str(why)
        self.acts = []

    def hear(
        self,
        answer: Sequence[tuple[str, Step]],
        policies: Mapping[str, Any],
        prompts: Any,
        group: int,
        last: bool,
    ) -> dict[str, Any]:
        """Take in what the world said; what begins new lines, by agent."""
        for seat in self.acts:
            seat.others.append(0.0)
        for seat in self.seats:
            if not seat.episode.done:
                seat.others[-1] += sum(float(step.reward) for name, step in answer if name != seat.agent)
        heard, calls = hear(self.seats, answer)
        self.acts = []
        for seat, step in heard:
            seat.state = str(step.info.get("state", step.observation))
            if step.done:
                seat.line = replace(seat.line, truncated=False)
            elif last:
                seat.line = replace(seat.line, truncated=True)
            else:
                text = prompts[seat.agent][group].row.get("prompt")
                ids = policies[seat.agent].reply(text, step.observation, seat.line.tokens.tolist())
                seat.turns += [-1] * len(ids)
                seat.line = seat.line.followed_by(ids)
                self.acts.append(seat)
        return calls


def _act(
    policy: Any,
    prompts: Sequence[Prompt],
    name: str,
    games: Sequence[_Game],
    seed: Sequence[int],
    turn: int,
    sampling: Sampling,
    entropy: bool,
    world: World,
) -> None:
    """The actions of one agent in all episodes in which it acts now. Where one is not whole the episode is over."""
    seats = [s for g in games for s in g.acts if s.agent == name]
    full = [s for s in seats if room(policy, prompts[s.line.group], sampling) <= len(s.line)]
    for seat in full:
        games[seat.game].acts = []
    seats = [s for s in seats if s not in full]
    forks = [(s.line, [stream(seed[s.game], "turn", turn, name)]) for s in seats]
    made = go_on(policy, prompts, forks, sampling, entropy, at_most=world.turn_tokens)
    for seat, line in zip(seats, made, strict=True):
        said = line.tokens[len(seat.line) :].tolist()
        number = len(seat.episode.actions)
        seat.turns += [number] * len(said)
        seat.line = line
        if line.truncated and len(line) >= room(policy, prompts[line.group], sampling):
            games[seat.game].acts = []
        else:
            seat.episode.actions.append(policy.decode(said, sampling.stop))
            seat.episode.states.append(seat.state)


def _seat(
    policies: Mapping[str, Any],
    prompts: Mapping[str, Sequence[Prompt]],
    blank: Mapping[str, Sequence[Line]],
    game: int,
    group: int,
    name: str,
    said: Any,
) -> Seat:
    """A new line of an agent, behind its prompt what it was told."""
    prompt = prompts[name][group]
    line = blank[name][group]
    if said and not isinstance(prompt.row.get("prompt"), str):
        raise RunError(
            f"agent '{name}' is told something behind its prompt before it acts, and its prompt is a conversation",
            hint="give such an agent a prompt of plain text",
        )
    ids = policies[name].reply(prompt.row.get("prompt"), said, []) if said else ()
    text = f"{prompt.row.get('prompt')}{said}"
    return Seat(game, name, line.followed_by(ids) if ids else line, text, turns=[-1] * len(ids))


def _table(policy: Any, prompts: Sequence[Prompt], seats: Sequence[Seat], sampling: Sampling, world: World) -> Rollouts:
    """An agent's lines, with the prompts that it has lines of."""
    used = sorted({seat.line.group for seat in seats})
    rows = [[Segment(replace(s.line, group=used.index(s.line.group)), s.turns)] for s in seats]
    some = [prompts[g] for g in used]
    out = table_of(policy, some, rows, sampling, [s.episode for s in seats], world)
    others = torch.zeros_like(out["step_rewards"])
    for i, seat in enumerate(seats):
        others[i, : len(seat.others)] = torch.tensor(seat.others)
    return out.with_columns(
        other_rewards=others, episode=torch.tensor([s.game for s in seats], device=out["mask"].device)
    )
