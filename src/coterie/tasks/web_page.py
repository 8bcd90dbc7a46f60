"""Forms to fill in, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.text_world import opening
from coterie.environments.web_page import HEIGHT, WIDTH, WebPage, shown
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards import gui
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate

_FIELDS = ("name", "city", "mail", "note", "team")
_TICKS = ("news", "gift", "rush", "terms")
_BUTTONS = ("send", "save", "cancel", "back")
_TEXTS = ("Ada", "Oslo", "blue 7", "tomorrow", "x-12", "Bo Lee")
HOW = (
    'Actions, one a turn: {"action": "click", "point": [x, y]}, {"action": "type", "input_text": "…"}, '
    '{"action": "scroll", "input_text": "up" or "down"}.'
)
FIRST = "Which action comes first? <think>…</think><answer>{…}</answer>"


@task()
def web_page(
    *,
    fields: int = 1,
    ticks: int = 1,
    turns: int = 10,
    predict: bool = False,
    timeout: float | None = None,
    chat: bool = True,
    train: int = 200,
    held_out: int = 50,
    seed: int = 0,
) -> Task:
    """'Type Oslo into city, switch gift on, then press send.': clicks, keys and scrolling in Chromium (extra `web`).

    fields and ticks: to fill in and to switch on, among others. The page is two screens high. predict: only the first
    action is asked for, and graded for its name, its place and its form (UI-R1); there is no browser. timeout: seconds
    a call may take; with one, each episode has a browser of its own, without one all share one. chat: prompts are
    conversations. Pages are local files; the browser reaches nothing else.
    """
    if not 0 <= fields <= 3 or not 0 <= ticks <= 3 or turns < 2 * fields + ticks + 1:
        raise RecipeError(
            f"web-page has up to 3 fields and 3 ticks, and turns for all of them, got {fields=}, {ticks=}, {turns=}"
        )

    def make(rng: np.random.Generator) -> Row:
        names = [("field", n) for n in rng.choice(_FIELDS, 4, replace=False)]
        names += [("tick", n) for n in rng.choice(_TICKS, 3, replace=False)]
        names += [("button", n) for n in rng.choice(_BUTTONS, 2, replace=False)]
        places = rng.permutation(16).tolist()  # two columns, four rows a screen
        widgets = []
        for (kind, label), place in zip(names, places, strict=False):
            left, top = 10 + (place % 2) * WIDTH // 2, 10 + place // 2 * HEIGHT // 4
            width, height = {"field": (150, 30), "tick": (20, 20), "button": (90, 30)}[kind]
            widgets.append({"kind": kind, "label": str(label), "box": [left, top, left + width, top + height]})
        goal: dict[str, Any] = {
            "fields": {w["label"]: str(rng.choice(_TEXTS)) for w in widgets[:fields]},
            "ticks": {w["label"]: True for w in widgets[4 : 4 + ticks]},
            "button": widgets[7]["label"],
        }
        steps = [f"type {text} into {label}" for label, text in goal["fields"].items()]
        steps += [f"switch {label} on" for label in goal["ticks"]]
        text = f"Task: {', '.join([*steps, 'then press ' + goal['button']])}.\n{HOW}"
        seen = shown([{**w, "value": "", "on": False, "focus": False} for w in widgets])
        asked = f"{text}\n{seen}\n{FIRST}" if predict else f"{text}\n{seen}"
        row = {"prompt": opening(asked, chat=chat), "widgets": widgets, "goal": goal}
        return {**row, "gold": _gold(row)}

    rows, held = generate(make, train, held_out, seed)
    if predict:
        return Task(
            "web-page", rows, held, verify=_hits, reference=_said,
            corrupt=lambda row, seed: _said(row).replace('"action": "', '"action": "no'),
            rewards=[WeightedReward(gui.action_name, "action"), WeightedReward(gui.coordinate, "coordinate"),
                     WeightedReward(gui.form, "form")],
        )  # fmt: skip
    return Task(
        "web-page", rows, held, rewards=[WeightedReward(episode_return, "return")], script=_script,
        world=World(WebPage, turns=turns, timeout=timeout),
    )  # fmt: skip


def plan(row: Row) -> list[dict[str, Any]]:
    """The actions of who does what is asked, in order, with the boxes that clicks are to hit."""
    boxes = {w["label"]: w["box"] for w in row["widgets"]}
    goal, screen = row["goal"], 0
    out: list[dict[str, Any]] = []
    for label in (*goal["fields"], *goal["ticks"], goal["button"]):
        left, top, right, bottom = boxes[label]
        if top // HEIGHT != screen:
            out.append({"action": "scroll", "input_text": "down" if top // HEIGHT > screen else "up"})
            screen = top // HEIGHT
        box = [left, top - screen * HEIGHT, right, bottom - screen * HEIGHT]
        out.append({"action": "click", "point": [(left + right) // 2, (box[1] + box[3]) // 2], "box": box})
        if label in goal["fields"]:
            out.append({"action": "type", "input_text": goal["fields"][label]})
    return out


def _gold(row: Row) -> dict[str, Any]:
    """The first action, for rewards that grade single ones."""
    return {k: v for k, v in plan(row)[0].items() if k != "point"}


def _hits(completion: str, row: Row) -> bool:
    return gui.coordinate([completion], [row["gold"]]) == [1.0]


def _said(row: Row) -> str:
    """The first action, in the form that is asked for."""
    return f"<think></think><answer>{_script(row, ())}</answer>"


def _script(row: Row, observations: Sequence[Any]) -> str:
    return json.dumps({k: v for k, v in plan(row)[len(observations)].items() if k != "box"})
