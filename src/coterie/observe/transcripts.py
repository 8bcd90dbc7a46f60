"""Episodes of a world, turn by turn, on problems and with seeds that stay the same: to read before and after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.environments.base import Episode
from coterie.evaluator import complete
from coterie.observe.files import replacing
from coterie.sampling import held_out

if TYPE_CHECKING:
    from coterie.run import Run

SHOWN = 3
"""Held-out problems."""


def write(run: Run, path: Path) -> None:
    """Play the first held-out problems, as an evaluation does, and write what was said. Nothing held out, or a
    world of several agents, which one policy does not play: nothing.
    """
    rows = [run.task.held_out[i] for i in range(min(SHOWN, len(run.task.held_out)))]
    if not rows or run.task.world is None or run.task.world.agents:
        return
    world = replace(run.task.world, most_failed=1.0)  # what breaks down here is shown, and stops nothing
    made = complete(run.policy, rows, held_out(run.settings, run.task), 1, run.settings.seed, "transcript", world)
    told = [_told(row["prompt"], episode) for row, episode in zip(rows, made.episodes, strict=True)]
    path.parent.mkdir(exist_ok=True)
    with replacing(path, "the transcripts") as temporary:
        temporary.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _told(prompt: Any, episode: Episode) -> dict[str, Any]:
    turns = [
        {"action": action, "observation": observation, "reward": reward}
        for action, observation, reward in zip(
            episode.actions,
            [*episode.observations, None][: episode.turns],
            [*episode.rewards, 0.0][: episode.turns],
            strict=True,
        )
    ]
    return {"prompt": prompt, "turns": turns, "success": episode.success, "failed": episode.failed}
