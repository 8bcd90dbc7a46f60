"""Reward functions for methods that read several: what they say of a completion of the task sort."""

from __future__ import annotations

from typing import Any


def positions(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """Share of the places that are right."""
    pairs = list(zip(completions, answer, strict=True))
    return [sum(a == b for a, b in zip(c, w, strict=False)) / max(len(c), len(w)) for c, w in pairs]


def brevity(completions: list[str], **columns: Any) -> list[float]:
    """1 for nothing at all, less with every character."""
    return [1 / (1 + len(c)) for c in completions]


def speed(completions: list[str], **columns: Any) -> list[float]:
    """A stand-in for tokens a forward pass."""
    return [float(len(c)) for c in completions]


def outcome(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """As positions, by the name that a gate reads."""
    return positions(completions, answer)


def thought(completions: list[str], **columns: Any) -> list[float]:
    """A stand-in for a score of the reasoning: the share of different characters."""
    return [len(set(c)) / max(len(c), 1) for c in completions]


def steps(completions: list[str], **columns: Any) -> list[float]:
    """A stand-in for the sum of step rewards."""
    return [0.1 * len(c) for c in completions]


def auxiliary(completions: list[str], **columns: Any) -> list[float]:
    """A stand-in for a habit that shows in the text."""
    return [float("0" in c) for c in completions]


def tool_calls(completions: list[str], **columns: Any) -> list[float]:
    """A stand-in for the number of tool calls."""
    return [float(c.count("1")) for c in completions]


def stage(completions: list[str], **columns: Any) -> list[float]:
    """A stand-in for how far a rollout came: 0, 1 or 2."""
    return [float(min(len(c), 2)) for c in completions]


def hardness(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """A stand-in for how hard a prompt is: the same for all that answer it."""
    return [len(set(a)) / 4 for a in answer]


def start(completions: list[str], **columns: Any) -> list[float | None]:
    """A stand-in for the start of an interval: the first digit, where there is one."""
    return [float(c[0]) if c[:1].isdigit() else None for c in completions]


def end(completions: list[str], **columns: Any) -> list[float | None]:
    """A stand-in for its end: as far behind the start as the completion is long."""
    return [float(c[0]) + len(c) if c[:1].isdigit() else None for c in completions]


def nearer(prompts: list, first: list, second: list, target: list[list[float]]) -> list[tuple[float, float]]:
    """A judge of pairs of points: how near each is to where it should be, to a tenth."""

    def near(point: list, place: list[float]) -> float:
        return -round(sum((a - b) ** 2 for a, b in zip(point, place, strict=True)) ** 0.5, 1)

    return [(near(a, t), near(b, t)) for a, b, t in zip(first, second, target, strict=True)]
