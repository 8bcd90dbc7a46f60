"""UI-S1's roll-out: the policy acts in replays of an expert's episodes, which are patched (arXiv:2509.11543)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from coterie.environments.base import World
from coterie.environments.replay import EXPERT, Replay
from coterie.environments.scripted import Script, played
from coterie.metrics import record
from coterie.pieces import strategy
from coterie.rollout.episodes import play
from coterie.rollouts import Prompt, Rollouts, Sampling


@strategy(paper="arXiv:2509.11543", decisions="tokens")
def semi_online(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    world: World,
    script: Script,
    *,
    patches: int = 2,
    exact: float = 1.0,
    kind: float = 0.5,
) -> Rollouts:
    """One episode a seed in a replay of the episode that the task's script plays; the world itself is not asked again.

    An action that is the expert's earns `exact`, one whose first word is `kind`, any other nothing. Up to `patches`
    times an episode (-1: always) one that is not the expert's is patched: the policy is told the expert's, and goes on
    behind it. It learns from what it did itself, never from the patch. Evaluations are played in the world.
    """
    shown = [replace(p, row={**p.row, EXPERT: played(world, dict(p.row), script)}) for p in prompts]
    replayed = replace(world, make=partial(Replay, patches, exact, kind), timeout=None)
    out = play(policy, shown, seeds, sampling, replayed, entropy=entropy)
    steps = [info for episode in out.episodes for info in episode.infos]
    if steps:
        record("replay/patched_share", sum(info["patched"] for info in steps) / len(steps))
    record("replay/whole_share", sum(e.success for e in out.episodes) / len(out.episodes))
    return replace(out, prompts=list(prompts))
