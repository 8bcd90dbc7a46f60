"""Paint it: pictures in the asked colour, judged by their pixels. A first task for any pipeline of diffusers."""

from __future__ import annotations

import numpy as np

from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import PICTURES, Task
from coterie.tasks.split import Row

COLOURS = {
    "red": (0.9, 0.1, 0.1), "green": (0.1, 0.7, 0.2), "blue": (0.1, 0.2, 0.9), "yellow": (0.95, 0.9, 0.1),
    "white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0),
}  # fmt: skip
"""From 0 to 1."""
TRAIN = ("a {} wall", "a {} sheet of paper", "{} paint", "a {} curtain", "{} cloth", "a picture that is all {}")
HELD_OUT = ("a {} door", "a {} blanket")


@task()
def colours(*, names: tuple[str, ...] = tuple(COLOURS)) -> Task:
    """Draw a picture (or a video) all in the asked colour; `names` are the colours: red, green, blue, yellow, white,
    black.

    Reward `colour`: 1 minus the mean distance of pixels from the colour, over the largest there is. A picture is right
    where its mean is nearer to the asked colour than to the others. Held-out prompts name the same colours in other
    words.
    """
    unknown = [name for name in names if name not in COLOURS]
    if unknown or not names:
        raise RecipeError(f"colours are {', '.join(COLOURS)}, got {list(names)}", hint="task.names=[red,blue]")
    targets = np.array([COLOURS[name] for name in names])

    def rows(texts: tuple[str, ...]) -> list[Row]:
        return [{"prompt": text.format(name), "colour": name} for text in texts for name in names]

    def right(sample: np.ndarray, row: Row) -> bool:
        mean = np.asarray(sample, dtype=np.float64).reshape(-1, 3).mean(0)
        return names[int(np.linalg.norm(targets - mean, axis=-1).argmin())] == row["colour"]

    def colour(completions: list[np.ndarray], colour: list[str]) -> list[float]:
        return [_closeness(c, COLOURS[name]) for c, name in zip(completions, colour, strict=True)]

    return Task(
        "colours", rows(TRAIN), rows(HELD_OUT), verify=right, rewards=[WeightedReward(colour, "colour")],
        latent=PICTURES,
    )  # fmt: skip


def _closeness(picture: np.ndarray, target: tuple[float, ...]) -> float:
    apart = np.linalg.norm(np.asarray(picture, dtype=np.float64) - target, axis=-1)
    return 1.0 - float(apart.mean()) / 3**0.5
