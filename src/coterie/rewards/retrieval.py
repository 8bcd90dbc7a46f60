"""GraphRAG-R1's rewards for answers that were looked up (arXiv:2507.23581), of a task with a world of tools.

All read the column `episode`. A retrieval counts where a tool answered it without an error.
"""

from __future__ import annotations

import math
from typing import Any

from coterie.environments.base import Episode


def retrievals(completions: list[str], *, episode: list[Episode], **_: Any) -> list[float | None]:
    """The number of retrievals, for pieces that read it (a weight of 0 only annotates)."""
    return [None if e.failed is not None else float(_count(e)) for e in episode]


def well_formed(completions: list[str], *, episode: list[Episode], **_: Any) -> list[float | None]:
    """1 where every action could be understood and the last one gave the answer in <answer>…</answer>."""
    return [None if e.failed is not None else float(_well_formed(e)) for e in episode]


def attenuated_retrieval(
    completions: list[str], *, episode: list[Episode], first: float = 0.2, decay: float = 0.5, **_: Any
) -> list[float | None]:
    """PRA: `first` for a retrieval and `decay` times as much for each one more, so never first / (1 - decay)."""
    return [None if e.failed is not None else sum(first * decay**i for i in range(_count(e))) for e in episode]


def cost_aware_f1(
    completions: list[str], *, episode: list[Episode], scale: float = 1.0, cost: float = 0.1, **_: Any
) -> list[float | None]:
    """CAF: the world's score of the answer (an F1) times scale * exp(-cost * retrievals)."""
    return [
        None if e.failed is not None else e.total * scale * math.exp(-cost * _count(e)) for e in episode
    ]  # fmt: skip


def _count(episode: Episode) -> int:
    return int(episode.infos[-1]["calls"]) if episode.infos else 0


def _well_formed(episode: Episode) -> bool:
    last = episode.actions[-1].rstrip() if episode.actions else ""
    answered = last.endswith("</answer>") and last.count("<answer>") == 1 == last.count("</answer>")
    return episode.done and answered and all(info["valid"] for info in episode.infos)
