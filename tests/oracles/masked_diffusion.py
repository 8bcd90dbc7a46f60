"""Masked diffusion in plain loops: schedules, decoding of an enumerable model, likelihood estimates, the two losses.

A model is a dict from a canvas (a tuple, None where masked) to the logits of its places, [C,V].
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Canvas = tuple[int | None, ...]
Model = Mapping[Canvas, np.ndarray]
LIMIT = 20.0
"""Exponents are limited to this."""


def random_model(places: int, tokens: int, seed: int = 0, sharp: float = 1.5) -> dict[Canvas, np.ndarray]:
    rng = np.random.default_rng(seed)
    values: list[int | None] = [None, *range(tokens)]
    return {c: sharp * rng.standard_normal((places, tokens)) for c in itertools.product(values, repeat=places)}


def joint_model(places: int, tokens: int, seed: int = 0, sharp: float = 1.5) -> dict[Canvas, np.ndarray]:
    """The exact conditionals of one random joint distribution, as a trained model approaches them."""
    joint = np.exp(sharp * np.random.default_rng(seed).standard_normal((tokens,) * places))
    model = {}
    values: list[int | None] = [None, *range(tokens)]
    for canvas in itertools.product(values, repeat=places):
        part = joint[tuple(slice(None) if x is None else x for x in canvas)]
        masked = [i for i in range(places) if canvas[i] is None]
        logits = np.zeros((places, tokens))
        for axis, place in enumerate(masked):
            logits[place] = np.log(part.sum(tuple(a for a in range(len(masked)) if a != axis)))
        model[canvas] = logits
    return model


def probabilities(logits: np.ndarray) -> list[float]:
    weights = [math.exp(x - max(logits)) for x in logits]
    return [w / sum(weights) for w in weights]


def ascending(width: int, steps: int, blocks: int = 1) -> list[list[int]]:
    """Tokens of each step, block by block: 1, 2, 4 …, the last takes the rest; later blocks have one step."""
    counts = [2**i for i in range(steps)]
    counts[-1] += width - sum(counts)
    first = steps - blocks + 1
    return [counts[:first], *([c] for c in counts[first:])]


def uniform_counts(masked: int, steps: int) -> list[int]:
    return [masked // steps + (1 if i < masked % steps else 0) for i in range(steps)]


def score(probs: Sequence[float], order: str) -> float:
    ranked = sorted(probs, reverse=True)
    if order == "peak":
        return ranked[0]
    if order == "margin":
        return ranked[0] - ranked[1]
    return 1.0 + sum(p * math.log(p) for p in probs) / math.log(len(probs))  # entropy


def distribution(model: Model, places: int, counts: Sequence[int], order: str) -> dict[tuple[int, ...], float]:
    """Probability of every final canvas, where places are chosen before tokens; with order random, all sets alike."""
    out: dict[tuple[int, ...], float] = defaultdict(float)

    def go(canvas: Canvas, step: int, weight: float) -> None:
        if step == len(counts):
            out[tuple(x for x in canvas if x is not None)] += weight
            return
        masked = [i for i in range(places) if canvas[i] is None]
        probs = {i: probabilities(model[canvas][i]) for i in masked}
        if order == "random":
            sets = list(itertools.combinations(masked, counts[step]))
        else:
            sets = [tuple(sorted(masked, key=lambda i: (-score(probs[i], order), i))[: counts[step]])]
        for chosen in sets:
            for tokens in itertools.product(*(range(len(probs[i])) for i in chosen)):
                new = list(canvas)
                p = weight / len(sets)
                for i, token in zip(chosen, tokens, strict=True):
                    new[i] = token
                    p *= probs[i][token]
                go(tuple(new), step + 1, p)

    go((None,) * places, 0, 1.0)
    return dict(out)


def hidden(tokens: Sequence[int], places: Sequence[int]) -> Canvas:
    return tuple(None if i in places else t for i, t in enumerate(tokens))


def log_prob(model: Model, tokens: Sequence[int], masked: Sequence[int], place: int) -> float:
    return math.log(probabilities(model[hidden(tokens, masked)][place])[tokens[place]])


def bound(model: Model, tokens: Sequence[int]) -> float:
    """The mean over l, and over all sets of l places, of L/l times the sum of log-probs over the set."""
    total = len(tokens)
    per_size = []
    for size in range(1, total + 1):
        sets = list(itertools.combinations(range(total), size))
        sums = [math.fsum(log_prob(model, tokens, s, i) for i in s) for s in sets]
        per_size.append(total / size * math.fsum(sums) / len(sets))
    return math.fsum(per_size) / total


def estimate(logp: Sequence[float], sets: Sequence[Sequence[int]]) -> float:
    """LLaDA's estimate where log-probs do not depend on the mask."""
    total = len(logp)
    return math.fsum(total / len(s) * math.fsum(logp[i] for i in s) for s in sets) / len(sets)


def coupled_estimate(model: Model, tokens: Sequence[int], sets: Sequence[Sequence[int]]) -> float:
    """The whole once, with weight 1/L; each set with its complement for the sizes below L."""
    total = len(tokens)
    everything = list(range(total))
    whole = math.fsum(log_prob(model, tokens, everything, i) for i in everything) / total
    pairs = []
    for s in sets:
        rest = [i for i in everything if i not in s]
        halves = [total / len(m) * math.fsum(log_prob(model, tokens, m, i) for i in m) for m in (list(s), rest)]
        pairs.append(sum(halves) / 2)
    return whole + (total - 1) / total * (math.fsum(pairs) / len(pairs) if pairs else 0.0)


def loss(
    table: Mapping[str, Any], eps: float, beta: float, by_pass: bool, others: bool = False
) -> tuple[float, np.ndarray]:
    """diffu-GRPO's loss (mean over tokens) or CJ-GRPO's (mean over steps of means over tokens), and its gradient. With
    `others` the baseline is the mean of the other rollouts of the group, as in coupled-GRPO.
    """
    logp, old, ref, mask = (np.asarray(table[k]) for k in ("logp", "logp_old", "logp_ref", "mask"))
    groups, rewards = table["groups"], table["rewards"]
    means = {g: np.mean([r for r, h in zip(rewards, groups, strict=True) if h == g]) for g in set(groups.tolist())}
    sizes = {g: groups.tolist().count(g) for g in means}
    steps = np.asarray(table["pass_index"])
    taken = [(i, t) for i in range(mask.shape[0]) for t in range(mask.shape[1]) if mask[i, t]]
    pools: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, t in taken:
        pools[int(steps[i, t]) if by_pass else 0].append((i, t))
    value, gradient = 0.0, np.zeros(logp.shape)
    for pool in pools.values():
        for i, t in pool:
            size, mean = sizes[int(groups[i])], means[int(groups[i])]
            if others:
                mean = (mean * size - rewards[i]) / (size - 1) if size > 1 else rewards[i]
            advantage = rewards[i] - mean
            change = logp[i, t] - old[i, t]
            ratio = math.exp(max(-LIMIT, min(LIMIT, change)))
            clipped = min(max(ratio, 1 - eps), 1 + eps)
            gap = ref[i, t] - logp[i, t]
            share = 1.0 / len(pool) / len(pools)
            k3 = math.exp(min(gap, LIMIT)) - 1 - gap
            value += share * (-min(ratio * advantage, clipped * advantage) + beta * k3)
            inside = ratio * advantage <= clipped * advantage and abs(change) <= LIMIT
            slope = 1 - (math.exp(gap) if gap <= LIMIT else 0.0)
            gradient[i, t] = share * ((-advantage * ratio if inside else 0.0) + beta * slope)
    return value, gradient
