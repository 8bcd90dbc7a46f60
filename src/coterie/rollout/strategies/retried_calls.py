"""THOR's roll-out: a tool call that failed is taken back and made anew several times (arXiv:2509.13761)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from coterie.environments.base import RAN, Episode, Step, World
from coterie.environments.hosts import Failed, Hosts
from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.pieces import strategy
from coterie.rollout.engines.base import Request
from coterie.rollout.episodes import key_of, play
from coterie.rollout.forks import Line, refuse_stop_strings, room, table, tokens_before
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream


@dataclass(frozen=True)
class Retreat:
    """A place that an episode is taken back to: in row `row` of the table, in the action of its turn `turn`, of which
    the tokens `kept` stay. `prompt` is all that was read and said until there. No more than `left` tokens may follow;
    `whole` is whether the world set that limit, which an action may fill, and not the budget of the episode.
    """

    row: int
    turn: int
    kept: tuple[int, ...]
    prompt: Prompt
    left: int
    whole: bool


@strategy(paper="arXiv:2509.13761", writes="ran", decisions="tokens")
def retried_calls(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    world: World,
    *,
    calls: int = 1,
    retries: int = 16,
    back: int = 100,
    begins: str = "<tool_call>",
) -> Rollouts:
    """Episodes as in plain, and behind them a group for each tool call of theirs that is taken back and made anew.

    A call has failed where the world says so (`ran` of the step's info is False). Of what was said in its action the
    thought before the text `begins` stays, without its last `back` tokens; where the action has no such text, nothing
    does. What was read and said until there is the prompt of the new group. It goes on `retries` times to the end of
    that one action, which the world then answers: begun again, and led there by the actions before. `ran` is 1 where a
    call was made and ran, 0 where none did or the budget cut it off, -1 in the rows of the episodes. calls: the most
    that are taken back in the episodes of a prompt, drawn at random; -1 takes all. rollout.group_size counts the
    episodes alone.

    A retry that the world fails is left out, and so is one whose earlier actions it answers in another way than before.
    """
    refuse_stop_strings(sampling, "retried_calls")
    if world.context is not None or world.agents:
        raise RecipeError(
            "retried_calls goes back in the whole episode of one agent, and this world has "
            + ("several agents" if world.agents else "a context"),
            where="rollout.strategy=retried_calls",
            hint="rollout.strategy=plain",
        )
    if retries < 2 or back < 0 or calls < -1:
        raise RecipeError(
            f"retried_calls needs 2 retries or more to compare, got retries={retries}, back={back}, calls={calls}",
            where="rollout.strategy=retried_calls",
            hint="rollout.strategy.retries=16, rollout.strategy.back=100, rollout.strategy.calls=1",
        )
    made = play(policy, prompts, seeds, sampling, world, entropy=entropy)
    made = made.with_columns(ran=torch.full_like(made["groups"], -1))
    places = [
        _retreat(policy, made, row, turn, sampling, world, back, begins)
        for row, turn in _failed(made, [own[0] for own in seeds], calls)
    ]
    own = [seed for group in seeds for seed in group]
    requests = [
        Request(
            p.prompt.tokens,
            tuple(stream(own[p.row], "retry", p.turn, k) for k in range(retries)),
            replace(sampling, max_tokens=p.left),
        )
        for p in places
    ]
    again = _again(policy, made, places, requests, sampling, world, entropy) if places else None
    return made if again is None else Rollouts.concat([made, again])


def _failed(made: Rollouts, seeds: Sequence[int], calls: int) -> list[tuple[int, int]]:
    """Row and turn of the failed calls that are taken back, and what share of all calls has failed."""
    found: list[list[tuple[int, int]]] = [[] for _ in seeds]
    said = [info[RAN] for episode in made.episodes for info in episode.infos if RAN in info]
    for row, (group, episode) in enumerate(zip(made["groups"].tolist(), made.episodes, strict=True)):
        found[group] += [(row, turn) for turn, info in enumerate(episode.infos) if info.get(RAN) is False]
    if said:
        record("retries/failed_share", said.count(False) / len(said))
    out = []
    for seed, mine in zip(seeds, found, strict=True):
        order = np.random.default_rng(stream(seed, "failed calls")).permutation(len(mine)).tolist()
        out += [mine[i] for i in sorted(order if calls < 0 else order[:calls])]
    return out


def _retreat(
    policy: Any, made: Rollouts, row: int, turn: int, sampling: Sampling, world: World, back: int, begins: str
) -> Retreat:
    where = (made["turn"][row] == turn).nonzero().flatten()
    start, ids = int(where[0]), made["tokens"][row, where].tolist()
    kept = max((tokens_before(policy, ids, begins) or 0) - back, 0)
    asked = made.prompts[int(made["groups"][row])]
    budget = room(policy, asked, sampling) - start - kept
    left = budget if world.turn_tokens is None else min(budget, world.turn_tokens - kept)
    read = (*asked.tokens, *made["tokens"][row, : start + kept].tolist())
    return Retreat(row, turn, tuple(ids[:kept]), replace(asked, tokens=read), left, left < budget)


def _again(
    policy: Any,
    made: Rollouts,
    places: Sequence[Retreat],
    requests: Sequence[Request],
    sampling: Sampling,
    world: World,
    entropy: bool,
) -> Rollouts | None:
    """The groups of the retries, without what the world failed; None if nothing is left."""
    drawn = policy.generate(requests, entropy=entropy)
    whose = [p for p, request in zip(places, requests, strict=True) for _ in request.seeds]
    counts, cut = drawn.mask.sum(-1).tolist(), drawn.truncated.tolist()
    actions = {
        i: policy.decode([*p.kept, *drawn.tokens[i, :n].tolist()])
        for i, (p, n) in enumerate(zip(whose, counts, strict=True))
    }
    answers = _answers(world, [(p.prompt.row, made.episodes[p.row], p.turn) for p in whose], actions)
    record("retries/lost_share", 1 - len(answers) / len(whose))
    if not answers:
        return None
    alive = [p for p in places if any(whose[i] is p for i in answers)]
    lines, episodes = [], []
    for i, step in answers.items():
        n, group = counts[i], next(g for g, p in enumerate(alive) if p is whose[i])
        more = None if drawn.entropy is None else drawn.entropy[i, :n]
        lines.append(Line(group, drawn.tokens[i, :n], drawn.mask[i, :n], drawn.logp[i, :n], more, cut[i]))
        state = made.episodes[whose[i].row].states[whose[i].turn]
        info = {"success": False, **step.info}
        episodes.append(Episode([float(step.reward)], [actions[i]], [step.observation], [state], [info], step.done))
    out = table(policy, [p.prompt for p in alive], lines, sampling)
    device = out["mask"].device
    ended = [whose[i].whole or not cut[i] for i in answers]
    ran = [int(whole and e.infos[0].get(RAN) is True) for whole, e in zip(ended, episodes, strict=True)]
    out = out.with_columns(
        turn=torch.where(out["mask"], 0, -1),
        step_rewards=torch.tensor([e.rewards for e in episodes], device=device),
        state_key=torch.tensor([[key_of(e.states[0])] for e in episodes], device=device),
        ran=torch.tensor(ran, device=device),
    )
    return replace(out, episodes=episodes)


def _answers(
    world: World, until: Sequence[tuple[Mapping[str, Any], Episode, int]], actions: Mapping[int, str]
) -> dict[int, Step]:
    """What the world says to each action in place of that of a turn of an episode, without those that it failed."""
    out: dict[int, Step] = {}
    for first in range(0, len(until), world.processes):
        now = range(first, min(first + world.processes, len(until)))
        heard = _answers_at_once(world, [until[i] for i in now], [actions[i] for i in now])
        out |= {first + i: step for i, step in heard.items()}
    return out


def _answers_at_once(
    world: World, until: Sequence[tuple[Mapping[str, Any], Episode, int]], actions: Sequence[str]
) -> dict[int, Step]:
    hosts = Hosts(world, len(until))
    try:
        begun = hosts.reset({i: row for i, (row, _, _) in enumerate(until)})
        live = {i: until[i][1:] for i, key in begun.items() if not isinstance(key, Failed)}
        for turn in range(max((to for _, to in live.values()), default=0)):
            heard = hosts.step({i: episode.actions[turn] for i, (episode, to) in live.items() if turn < to})
            for i, step in heard.items():
                if isinstance(step, Failed) or step.observation != live[i][0].observations[turn]:
                    del live[i]
        last = hosts.step({i: actions[i] for i in live})
    finally:
        hosts.close()
    return {i: step for i, step in last.items() if isinstance(step, Step)}
