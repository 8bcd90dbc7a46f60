"""Preference pairs as rows of rollouts: the preferred answer earns 1, the other 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.errors import DataError

Row = dict[str, Any]
PREFERENCE = "preference"
"""Component that is 1 for the preferred answer of a pair and 0 for the other."""
REVISES = "revises"
"""Component of rows that improve on an answer shown to them: 1 that is the preferred one, -1 the other; 0 for the rest.
"""
ENDS = ("_chosen", "_rejected")


def are_pairs(names: list[str]) -> bool:
    return "chosen" in names and "rejected" in names


def scores_of(names: list[str]) -> list[str]:
    """Components that pairs carry as two columns, NAME_chosen and NAME_rejected."""
    chosen = [n.removesuffix(ENDS[0]) for n in names if n.endswith(ENDS[0])]
    return [n for n in chosen if n + ENDS[1] in names]


def rows_of(pair: Mapping[str, Any], scores: list[str], revise: str | None) -> list[Row]:
    """The preferred answer and the other; with `revise`, also each of them as an improvement on each."""
    prompt, chosen, rejected = parts(pair)
    both = [
        {"prompt": prompt, "completion": text, f"reward.{PREFERENCE}": 1.0 - side}
        | {f"reward.{n}": pair[n + ENDS[side]] for n in scores}
        for side, text in enumerate((chosen, rejected))
    ]
    if revise is None:
        return both
    shown = [
        {**row, "before": said(before) + revise, f"reward.{REVISES}": sign}
        for sign, before in ((1.0, chosen), (-1.0, rejected))
        for row in both
    ]
    return [{**row, f"reward.{REVISES}": 0.0} for row in both] + shown


def parts(pair: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected. Without a prompt, it is what both begin with (TRL's implicit prompts)."""
    chosen, rejected, where = pair["chosen"], pair["rejected"], f"pair {pair.get('__row', 0) + 1}"
    for name in ("chosen", "rejected"):
        if not isinstance(pair[name], str | list) or (isinstance(pair[name], list) and not pair[name]):
            raise DataError(f"'{name}' is neither text nor messages", where=where)
    if pair.get("prompt") is not None:
        return pair["prompt"], chosen, rejected
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if isinstance(chosen, str) and common and chosen[common - 1] == " ":
        common -= 1  # the space belongs to the answer
    if common == 0:
        raise DataError(
            "there is no prompt: no column 'prompt', and chosen and rejected begin differently", where=where,
            hint="add a column 'prompt'",
        )  # fmt: skip
    if common in (len(chosen), len(rejected)):
        raise DataError("chosen and rejected are the same, or one is the beginning of the other", where=where)
    return chosen[:common], chosen[common:], rejected[common:]


def said(completion: Any, where: str = "") -> str:
    """The text of a completion: text as it is, or one message of the assistant."""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and len(completion) == 1 and completion[0].get("role") == "assistant":
        return str(completion[0]["content"])
    raise DataError(
        "a completion is text, or one message of the assistant", where=where or None,
        hint="earlier turns belong to the prompt",
    )  # fmt: skip
