"""Rewards for single actions on a screen: UI-R1 (arXiv:2503.21620) and GUI-R1 (arXiv:2504.10458).

They read the column `gold`: {"action": …, "box": [left, top, right, bottom] or "point": [x, y], "input_text": …}. Of an
episode its first action is graded. What cannot be read is worth 0; nothing that was written is evaluated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coterie.environments.base import Episode
from coterie.environments.gui import Act, inside, read

_FORM = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
_BRIEF = re.compile(r"\s*<answer>.*?</answer>\s*", re.DOTALL)
NEAR = 140
"""Pixels that GUI-R1 allows between a click and the point it should hit."""
_DIRECTIONS = {"left", "right", "up", "down"}
_TEXTS = {"type", "select", "open_app", "scroll"}


def action_name(
    completions: list[str], gold: list[Mapping[str, Any]], episode: list[Episode] | None = None, **_: Any
) -> list[float | None]:
    """UI-R1: 1 where the action is the right one."""
    return _each(completions, gold, episode, lambda text, act, want: float(act.action == want["action"]))


def coordinate(
    completions: list[str], gold: list[Mapping[str, Any]], episode: list[Episode] | None = None, **_: Any
) -> list[float | None]:
    """UI-R1: 1 where the right action was chosen and, if that is a click, it is in the box, edges included."""

    def score(text: str, act: Act, want: Mapping[str, Any]) -> float:
        return float(act.action == want["action"] and (act.action != "click" or inside(act.point, want["box"])))

    return _each(completions, gold, episode, score)


def form(completions: list[str], episode: list[Episode] | None = None, **_: Any) -> list[float | None]:
    """UI-R1: 1 where the whole text is <think>…</think><answer>…</answer>."""
    return _formal(_FORM, completions, episode)


def brief_form(completions: list[str], episode: list[Episode] | None = None, **_: Any) -> list[float | None]:
    """UI-R1-E, last phase: 1 where the whole text is <answer>…</answer>, without a thought."""
    return _formal(_BRIEF, completions, episode)


def _formal(pattern: re.Pattern[str], completions: list[str], episode: list[Episode] | None) -> list[float | None]:
    blank = [{"action": ""}] * len(completions)
    return _each(completions, blank, episode, lambda text, act, want: float(bool(pattern.fullmatch(text))), unread=True)


def gui_r1(
    completions: list[str],
    gold: list[Mapping[str, Any]],
    episode: list[Episode] | None = None,
    *,
    form_weight: float = 0.2,
    **_: Any,
) -> list[float | None]:
    """GUI-R1: (1 - form_weight) for the right action, rightly used, and form_weight for its form.

    A click is right less than 140 pixels from the point, or strictly inside the box; what is typed, selected or
    scrolled where its words have an F1 of one half with those of the reference; other actions by their name.
    """

    def score(text: str, act: Act, want: Mapping[str, Any]) -> float:
        return (1 - form_weight) * _right(act, want) + form_weight * _formed(text, act)

    return _each(completions, gold, episode, score)


def _right(act: Act, want: Mapping[str, Any]) -> float:
    if act.action != want["action"].lower():
        return 0.0
    if act.action == "click":
        if act.point is None:
            return 0.0
        if "point" in want:
            return float(math.dist(act.point, want["point"]) < NEAR)
        left, top, right, bottom = want["box"]
        return float(left < act.point[0] < right and top < act.point[1] < bottom)
    if act.action in ("type", "select", "scroll"):
        return float(_shared(act.text, want.get("input_text", "")) >= 0.5)
    return 1.0


def _formed(text: str, act: Act) -> float:
    said = act.text.lower()
    needs = act.action in _TEXTS and (not said or said == "no input text")
    astray = act.action == "scroll" and said not in _DIRECTIONS
    return float(bool(_FORM.fullmatch(text)) and not needs and not astray)


def _shared(a: str, b: str) -> float:
    """F1 of the sets of words; of single words 1 where one is part of the other."""
    left, right = set(a.lower().split()), set(b.lower().split())
    if len(left) == len(right) == 1:
        one, other = *left, *right
        return float(one in other or other in one)
    return 2 * len(left & right) / (len(left) + len(right)) if left and right else 0.0


def _each(
    completions: Sequence[str],
    gold: Sequence[Mapping[str, Any]],
    episodes: Sequence[Episode] | None,
    score: Callable[[str, Act, Mapping[str, Any]], float],
    *,
    unread: bool = False,
) -> list[float | None]:
    """unread: what cannot be read is scored too."""
    out: list[float | None] = []
    for i, text in enumerate(completions):
        if episodes is not None:
            if episodes[i].failed is not None:
                out.append(None)
                continue
            text = episodes[i].actions[0] if episodes[i].actions else ""
        act = read(text)
        out.append(score(text, Act(""), gold[i]) if isinstance(act, str) and unread else
                   0.0 if isinstance(act, str) else score(text, act, gold[i]))  # fmt: skip
    return out
