"""Process rewards: a score for each step of a completion; which step each decision is in, by the text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from coterie.errors import RecipeError
from coterie.rewards.functions import WeightedReward, read

STEPS = "completion_steps"
"""The column in which a process function finds the texts of the steps it scores."""


def process_of(task: Any, written: Any, section: Any) -> WeightedReward | None:
    """The process function of a run: the one written in the recipe, else the task's, else None.

    Written as reward functions are: a callable, 'file.py:name', 'package.module:name', or a mapping with `fn` and any
    of name, timeout, on_error. It is f(completions, **columns) -> list[list[float]], a score for each step of each
    completion (None: this completion has none), and finds the texts of the steps in the column `completion_steps`.
    """
    if written is None:
        return task.process
    fn = written.get("fn") if isinstance(written, Mapping) else written
    if not callable(fn) and not (isinstance(fn, str) and ":" in fn):
        raise RecipeError(
            f"rewards.process names no function, got {written!r}",
            hint="file.py:name, a function f(completions, completion_steps, **columns) -> list of lists of float",
        )
    return replace(read(written, section), per_step=True)


def split(pieces: Sequence[str], separator: str, stop: Sequence[str] = ()) -> list[int]:
    """The step of each token, by the tokens' texts: the step in which its last visible character is. -1: no steps.

    Steps are the parts between separators that are not blank. What is blank belongs to the step before it, or to the
    first; so does all that follows a stop string. Steps are numbered by their tokens, so that each one has some.
    """
    text = "".join(pieces)
    for s in stop:
        text = text.partition(s)[0]
    starts, at = [], 0
    for part in text.split(separator):
        if visible := part.strip():
            starts.append(at + part.index(visible))
        at += len(part) + len(separator)
    if not starts:
        return [-1] * len(pieces)
    steps, end = [], 0
    for piece in pieces:
        end += len(piece)
        steps.append(max(bisect_left(starts, end) - 1, 0))
    number = {step: i for i, step in enumerate(dict.fromkeys(steps))}
    return [number[step] for step in steps]


def texts_of_steps(steps: Sequence[int], tokens: Sequence[int], decode: Any) -> list[str]:
    """The text of each step, from the tokens that are in it."""
    parts: list[list[int]] = [[] for _ in range(max(steps, default=-1) + 1)]
    for step, token in zip(steps, tokens, strict=True):
        if step >= 0:
            parts[step].append(token)
    return [decode(part).strip() for part in parts]


def columns(
    steps: Sequence[Sequence[int]], scores: Sequence[Sequence[float] | None], mask: Tensor
) -> dict[str, Tensor]:
    """`turn` [B,T] and `step_rewards` [B,U], from each row's steps (one a decision, in order) and their scores."""
    width = max([len(s) for s in scores if s is not None], default=0) or 1
    padded = [[*(s or ()), *[0.0] * (width - len(s or ()))] for s in scores]
    flat = torch.tensor([step for row in steps for step in row], device=mask.device)
    turn = torch.full(mask.shape, -1, device=mask.device).masked_scatter(mask, flat)
    return {"turn": turn, "step_rewards": torch.tensor(padded, dtype=torch.float32, device=mask.device)}
