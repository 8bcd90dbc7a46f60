"""Reward functions both sides call, with TRL's signature. Two environments import this: of coterie, tasks alone."""

from __future__ import annotations

from typing import Any

DIGITS = frozenset("0123456789")


def digit_share(completions: list[str], **columns: Any) -> list[float]:
    """Share of characters that are digits: cheap, and never the same for all rollouts of a group, so no row is free."""
    return [sum(c in DIGITS for c in text) / max(len(text), 1) for text in completions]


def exact(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """1 where the completion is the answer."""
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]


def countdown(completions: list[str], numbers: list[list[int]], target: list[int], **columns: Any) -> list[float]:
    """1 where the completion makes the target of the numbers, each used once."""
    from coterie.tasks.countdown import solves

    return [float(solves(text, *row)) for text, *row in zip(completions, numbers, target, strict=True)]


REWARDS = {"digit_share": digit_share, "exact": exact, "countdown": countdown}
