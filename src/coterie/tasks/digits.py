"""Draw a digit: scikit-learn's 8x8 handwritten digits, sampled by denoising and judged by classifiers trained here."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.streams import stream
from coterie.tasks.base import Latent, Task
from coterie.tasks.split import Row

SIDE, FULL = 8, 16.0
"""Pixels a side, and the value of full ink."""
FLOOR = -6.0
"""Log-probabilities below this count as this: what is wrong is wrong."""


@task()
def digits(
    *, held_out: float = 0.4, prompts: int = 200, contrast: float = 0.0, preference: float = 0.0, seed: int = 0
) -> Task:
    """Draw the asked digit as an 8x8 picture, from -1 (paper) to 1 (ink). Needs scikit-learn: the extra `flow`.

    A share `held_out` of the 1797 pictures trains the verifier, whose verdict nothing else sees; the others are the
    references and train what rewards. Rewards: `digit`, the log-probability that a classifier gives the asked digit,
    from -6 to 0; `contrast` and `preference` are their weights (0 records them): how far pixels are ink or paper and
    not between, and by what odds a picture passes for handwriting and not for a blurred or noisy copy. `prompts` are
    held out to draw from: digits in turn. A smaller picture (denoise.resolution) is judged as it looks enlarged.
    """
    if not 0.1 <= held_out <= 0.9:
        raise RecipeError(f"held_out is a share of the pictures between 0.1 and 0.9, got {held_out:g}")
    pictures, labels = _data()
    order = np.random.default_rng(stream(seed, "digits")).permutation(len(pictures))
    count = round(held_out * len(pictures))
    judge = _Judge(pictures[order[:count]], labels[order[:count]])
    own = order[count:]
    critic = _Critic(pictures[own], labels[own], seed)
    train: list[Row] = [{"prompt": str(labels[i]), "digit": int(labels[i]), "picture": int(i)} for i in own]
    held: list[Row] = [{"prompt": str(i % 10), "digit": i % 10} for i in range(prompts)]
    return Task(
        "digits", train, held, verify=judge,
        rewards=[
            WeightedReward(critic.digit, "digit"),
            WeightedReward(_contrast, "contrast", weight=contrast),
            WeightedReward(critic.preference, "preference", weight=preference),
        ],
        reference=lambda row: pictures[row["picture"]],
        latent=Latent((SIDE, SIDE), tuple(map(str, range(10)))),
    )  # fmt: skip


class _Judge:
    """The verifier: a support vector machine on pictures that nothing else has seen."""

    def __init__(self, pictures: np.ndarray, labels: np.ndarray) -> None:
        self.machine = _sklearn("svm").SVC(C=10.0, gamma=0.01).fit(_flat(pictures), labels)

    def __call__(self, sample: np.ndarray, row: Row) -> bool:
        return int(self.machine.predict(_flat([sample]))[0]) == row["digit"]


class _Critic:
    """What rewards: a classifier of digits, and one that tells handwriting from spoiled copies of it."""

    def __init__(self, pictures: np.ndarray, labels: np.ndarray, seed: int) -> None:
        rng = np.random.default_rng(stream(seed, "critic"))
        noisy = np.concatenate([pictures, pictures + 0.3 * rng.standard_normal(pictures.shape)])
        spoiled = [
            pictures + rng.uniform(0.2, 0.8, (len(pictures), 1, 1)) * rng.standard_normal(pictures.shape),
            0.5 * (pictures + np.roll(pictures, 1, axis=rng.integers(1, 3))),
        ]
        self.digits = self._network(_flat(noisy), np.tile(labels, 2))
        self.taste = self._network(
            _flat(np.concatenate([pictures, *spoiled])), np.repeat([1, 0, 0], len(pictures)), after=self._curves
        )

    def digit(self, completions: list[np.ndarray], digit: list[int]) -> list[float]:
        """Log-probability of the asked digit, from FLOOR to 0."""
        chances = self.digits.predict_log_proba(_flat(completions))
        return np.clip(chances[np.arange(len(digit)), digit], FLOOR, 0.0).tolist()

    def preference(self, completions: list[np.ndarray]) -> list[float]:
        """Log-odds that a picture is handwriting, from FLOOR to -FLOOR, over -FLOOR."""
        chances = self.taste.predict_log_proba(self._curves(_flat(completions)))
        return (np.clip(chances[:, 1] - chances[:, 0], FLOOR, -FLOOR) / -FLOOR).tolist()

    @staticmethod
    def _curves(flat: np.ndarray) -> np.ndarray:
        return np.concatenate([flat, flat**2], 1)

    @staticmethod
    def _network(flat: np.ndarray, labels: np.ndarray, after: Any = None) -> Any:
        made = _sklearn("linear_model").LogisticRegression(C=0.1, max_iter=400)
        return made.fit(flat if after is None else after(flat), labels)


def _contrast(completions: list[np.ndarray]) -> list[float]:
    """How far pixels are from grey: 1 where all are ink or paper, 0 where all are between."""
    return (np.clip(np.abs(_flat(completions)), 0.0, 1.0) ** 2).mean(1).tolist()


def _flat(pictures: Any) -> np.ndarray:
    given = np.clip(np.asarray(pictures, dtype=np.float64), -1.5, 1.5)
    if given.shape[1:] != (SIDE, SIDE):
        given = _wider(given.shape[1]) @ given @ _wider(given.shape[2]).T
    return given.reshape(-1, SIDE * SIDE)


@lru_cache
def _wider(side: int) -> np.ndarray:
    """Takes so many pixels in a row to SIDE, linearly between their middles. [SIDE,side]"""
    middle = (np.arange(SIDE) + 0.5) * side / SIDE - 0.5
    return np.stack([np.interp(middle, np.arange(side), unit) for unit in np.eye(side)], 1)


@lru_cache(maxsize=1)
def _data() -> tuple[np.ndarray, np.ndarray]:
    """Pictures [N,8,8] from -1 to 1 and their digits [N]."""
    found = _sklearn("datasets").load_digits()
    return (found.images / (FULL / 2) - 1).astype(np.float32), found.target


def _sklearn(module: str) -> Any:
    """A module of scikit-learn. Raises RecipeError where it is not installed."""
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise RecipeError(
            "the task digits needs scikit-learn, which is not installed",
            where="task=digits",
            hint="pip install 'coterie[flow]'",
        ) from error
