"""Distillation of the reference's finer steps in plain loops: where they lead, and the squared distance to it."""

from __future__ import annotations


def level(step, steps, shift):
    even = 1 - step / steps
    return shift * even / (1 + (shift - 1) * even)


def fine_velocity(x, velocity, step, steps, shift, substeps):
    """x: a list of numbers; velocity(x, level) gives as many."""
    here = list(x)
    for k in range(substeps):
        now = level(step + k / substeps, steps, shift)
        after = level(step + (k + 1) / substeps, steps, shift)
        v = velocity(here, now)
        here = [a + b * (after - now) for a, b in zip(here, v, strict=True)]
    size = level(step + 1, steps, shift) - level(step, steps, shift)
    return [(b - a) / size for a, b in zip(x, here, strict=True)]


def gap(v, target):
    return sum((a - b) ** 2 for a, b in zip(v, target, strict=True)) / len(v)


def gap_gradient(v, target):
    return [2 * (a - b) / len(v) for a, b in zip(v, target, strict=True)]


def term(gaps, mask, coef):
    return [[coef * g if on else 0.0 for g, on in zip(*row, strict=True)] for row in zip(gaps, mask, strict=True)]
