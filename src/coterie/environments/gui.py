"""Actions on a screen, read and graded: as UI-R1 and GUI-R1 write them."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

NAMES = ("click", "type", "scroll")
DIRECTIONS = ("up", "down")
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_OBJECT = re.compile(r"\{.*?\}", re.DOTALL)
LONGEST = 2000


@dataclass(frozen=True)
class Act:
    """What is done: its name in lower case, where (pixels), and the text that is typed or the direction."""

    action: str
    point: tuple[int, int] | None = None
    text: str = ""


def read(said: str) -> Act | str:
    """The first action in an answer, or what is wrong with it.

    It is written as an object: {"action": "click", "point": [10, 20]}, {"action": "type", "input_text": "Ada"},
    {"action": "scroll", "input_text": "down"}; "coordinate" and "text" mean the same. It is read as a literal and never
    evaluated.
    """
    found = _ANSWER.findall(said)
    body = _OBJECT.search((found[-1] if found else said)[:LONGEST])
    if body is None:
        return 'an action is an object: {"action": "click", "point": [10, 20]}'
    try:
        value = ast.literal_eval(body[0])
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return "the action is no valid object"
    if not isinstance(value, dict) or not isinstance(value.get("action"), str):
        return 'an action has a name: {"action": "click", …}'
    point = value.get("point", value.get("coordinate"))
    text = value.get("input_text", value.get("text", ""))
    if point is not None and not (
        isinstance(point, list | tuple) and len(point) == 2
        and all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e6 for x in point)
    ):  # fmt: skip
        return '"point" is two numbers'
    if not isinstance(text, str):
        return '"input_text" is text'
    return Act(value["action"].lower(), None if point is None else (int(point[0]), int(point[1])), text)


def inside(point: tuple[int, int] | None, box: Sequence[int]) -> bool:
    """Whether a point is in a box [left, top, right, bottom], its edges included."""
    left, top, right, bottom = box
    return point is not None and left <= point[0] <= right and top <= point[1] <= bottom
