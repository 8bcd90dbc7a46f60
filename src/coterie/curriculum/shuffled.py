"""Every prompt once an epoch, in a new random order each epoch."""

from __future__ import annotations

from typing import Any

import numpy as np

from coterie.pieces import curriculum
from coterie.streams import stream


@curriculum()
class shuffled:
    """Draw prompts without replacement, reshuffled at every epoch from the run's seed; a cursor is all its memory."""

    def __init__(self) -> None:
        self.cursor = 0

    def __call__(self, size: int, count: int, seed: int) -> list[int]:
        """Indices of the next `count` of `size` prompts."""
        drawn: list[int] = []
        for position in range(self.cursor, self.cursor + count):
            epoch, place = divmod(position, size)
            if place == 0 or not drawn:
                order = np.random.default_rng(stream(seed, "draw", epoch)).permutation(size)
            drawn.append(int(order[place]))
        self.cursor += count
        return drawn

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cursor = state["cursor"]
