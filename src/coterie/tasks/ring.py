"""Points on a ring: the smallest task whose samples are arrays."""

from __future__ import annotations

import math

import numpy as np

from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.streams import stream
from coterie.tasks.base import Latent, Task
from coterie.tasks.split import Row


@task()
def ring(
    *, modes: int = 8, spread: float = 0.5, radius: float = 0.3, train: int = 512, held_out: int = 128, seed: int = 0
) -> Task:
    """Put a point of the plane near the asked one of `modes` places on the unit circle.

    References stand `spread` (standard deviation) around their place, so that a model trained on them is close and not
    exact; a point is right within `radius`. Rewards: `closeness`, exp(-distance / radius), and the unweighted `right`.
    """
    if modes < 1 or radius <= 0:
        raise RecipeError(f"a ring has at least one mode and a radius above 0, got modes={modes}, radius={radius:g}")
    names = tuple(str(k) for k in range(modes))
    angles = [2 * math.pi * k / modes for k in range(modes)]
    places = [(math.cos(a), math.sin(a)) for a in angles]

    def rows(count: int, side: str) -> list[Row]:
        return [
            {"prompt": names[i % modes], "target": list(places[i % modes]), "key": f"{side}{i}"} for i in range(count)
        ]

    def reference(row: Row) -> np.ndarray:
        rng = np.random.default_rng(stream(seed, "ring", row["key"]))
        return (np.array(row["target"]) + spread * rng.standard_normal(2)).astype(np.float32)

    def distance(sample: np.ndarray, row: Row) -> float:
        return float(np.hypot(*(np.asarray(sample, dtype=np.float64) - row["target"])))

    def right(sample: np.ndarray, row: Row) -> bool:
        return distance(sample, row) <= radius

    def closeness(sample: np.ndarray, row: Row) -> float:
        return math.exp(-distance(sample, row) / radius)

    return Task(
        "ring", rows(train, "train"), rows(held_out, "held-out"), verify=right,
        rewards=[
            WeightedReward(closeness, "closeness", per_sample=True),
            WeightedReward(right, "right", weight=0.0, per_sample=True),
        ],
        verdict="right", reference=reference, latent=Latent((2,), names),
    )  # fmt: skip
