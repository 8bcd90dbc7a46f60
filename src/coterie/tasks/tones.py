"""Enhance a signal: chords of pure tones in noise, the smallest stand-in for speech."""

from __future__ import annotations

import math

import numpy as np

from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.streams import stream
from coterie.tasks.base import Latent, Task
from coterie.tasks.split import Row

LIMIT = 30.0
"""Decibels beyond this count as this."""


@task()
def tones(
    *,
    length: int = 32,
    low: float = -2.5,
    high: float = 5.0,
    gain: float = 3.0,
    train: int = 512,
    held_out: int = 128,
    spectrum: float = 1.0,
    level: float = 1.0,
    seed: int = 0,
) -> Task:
    """Give back the clean signal of two tones, `length` samples, told in white noise of `low` to `high` decibels.

    Right is a sample whose SI-SDR (the scale-invariant ratio of signal to distortion) is `gain` decibels above that of
    what was told. Rewards: `si_sdr` in tens of decibels; `spectrum`, minus the mean distance of log-magnitudes; and
    `level`, minus the distance of log-loudness, which SI-SDR does not hear. `spectrum` and `level` are their weights.
    """
    if length < 8 or not low <= high:
        raise RecipeError(
            f"a signal has 8 samples or more, and low is at most high, got length={length}, low={low:g}, high={high:g}",
            where="task=tones",
        )

    def row(side: str, number: int) -> Row:
        rng = np.random.default_rng(stream(seed, "tones", side, number))
        time = np.arange(length) / length
        parts = [
            rng.uniform(0.4, 1.0) * np.sin(2 * math.pi * (rng.uniform(1.0, length / 6) * time + rng.random()))
            for _ in range(2)
        ]
        clean = np.sum(parts, 0)
        decibels = rng.uniform(low, high)
        size = math.sqrt(float(np.mean(clean**2)) / 10 ** (decibels / 10))
        told = np.round(clean + size * rng.standard_normal(length), 3)
        return {
            "prompt": " ".join(f"{n:g}" for n in told),
            "clean": clean.astype(np.float32).tolist(),
            "told_si_sdr": si_sdr(told, clean),
        }

    def right(sample: np.ndarray, row: Row) -> bool:
        return si_sdr(sample, row["clean"]) >= row["told_si_sdr"] + gain

    return Task(
        "tones", [row("train", i) for i in range(train)], [row("held-out", i) for i in range(held_out)], verify=right,
        rewards=[
            WeightedReward(_tens, "si_sdr", per_sample=True),
            WeightedReward(_spectrum, "spectrum", weight=spectrum, per_sample=True),
            WeightedReward(_level, "level", weight=level, per_sample=True),
        ],
        reference=lambda row: np.asarray(row["clean"], dtype=np.float32),
        corrupt=lambda row, number: np.array([float(n) for n in row["prompt"].split()]),
        latent=Latent((length,), ("signal",), told=True),
    )  # fmt: skip


def si_sdr(sample: np.ndarray, clean: np.ndarray) -> float:
    """Energy of the sample's share of the clean signal over that of the rest, in decibels, within LIMIT."""
    x, y = (np.asarray(s, dtype=np.float64) for s in (sample, clean))
    x, y = x - x.mean(), y - y.mean()
    share = y * float(x @ y) / max(float(y @ y), 1e-12)
    ratio = float(share @ share) / max(float((x - share) @ (x - share)), 1e-12)
    return float(np.clip(10 * math.log10(max(ratio, 1e-12)), -LIMIT, LIMIT))


def _tens(sample: np.ndarray, row: Row) -> float:
    return si_sdr(sample, row["clean"]) / 10


def _spectrum(sample: np.ndarray, row: Row) -> float:
    x, y = (np.log(np.abs(np.fft.rfft(np.asarray(s, dtype=np.float64))) + 0.5) for s in (sample, row["clean"]))
    return -float(np.mean(np.abs(x - y)))


def _level(sample: np.ndarray, row: Row) -> float:
    x, y = (math.sqrt(float(np.mean(np.asarray(s, dtype=np.float64) ** 2)) + 1e-6) for s in (sample, row["clean"]))
    return -abs(math.log(x / y))
