"""Pages in Chromium, what they may load, and the rewards of UI-R1 and GUI-R1."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coterie.environments import Episode
from coterie.environments import web_page as world_module
from coterie.environments.gui import Act, read
from coterie.environments.scripted import played
from coterie.environments.web_page import WebPage, chromium
from coterie.errors import RecipeError
from coterie.rewards import gui
from coterie.tasks.base import validate
from coterie.tasks.web_page import plan, web_page


@pytest.fixture
def browser() -> Iterator[None]:
    pytest.importorskip("playwright", reason="the extra `web` is not installed")
    if chromium() is None:
        pytest.skip("no Chromium on this machine")
    yield


ROW = {
    "prompt": "?",
    "widgets": [
        {"kind": "field", "label": "name", "box": [10, 10, 160, 40]},
        {"kind": "tick", "label": "gift", "box": [200, 10, 220, 30]},
        {"kind": "button", "label": "send", "box": [10, 300, 100, 330]},
        {"kind": "button", "label": "<b>", "box": [10, 60, 100, 90]},
    ],
    "goal": {"button": "send", "fields": {"name": "Ada 7"}, "ticks": {"gift": True}},
}


def do(**action: Any) -> str:
    return json.dumps(action)


def test_a_page_is_clicked_typed_into_and_scrolled(browser: None) -> None:
    world = WebPage()
    first = world.reset(ROW)
    assert (
        first == "field name [10, 10, 160, 40] = ''\ntick gift [200, 10, 220, 30] = off\nbutton <b> [10, 60, 100, 90]"
    )
    seen = str(world.step(do(action="click", point=[50, 20])).observation)
    assert "field name [10, 10, 160, 40] = '' (focus)" in seen and seen.endswith("\n> ")
    world.step(do(action="type", input_text="wrong"))
    assert "= 'Ada 7'" in str(world.step(do(action="type", input_text="Ada 7")).observation)
    assert "gift [200, 10, 220, 30] = on" in str(world.step(do(action="click", coordinate=[210, 20])).observation)
    assert "send [10, 60, 100, 90]" in str(world.step(do(action="scroll", input_text="Down")).observation)
    for bad, why in (
        ("press send", "an action is an object"), (do(action="drag"), "there is no action 'drag'"),
        (do(action="click"), 'a click has a "point"'), (do(action="click", point=[500, 1]), 'a click has a "point"'),
        (do(action="type"), "typing needs"), (do(action="scroll", input_text="left"), "up or down"),
    ):  # fmt: skip
        step = world.step(bad)
        assert not step.done and not step.info["valid"]
        assert "error: " in str(step.observation) and why in str(step.observation)
    end = world.step(do(action="click", point=[50, 75]))
    assert end.done and end.reward == 1.0 and end.info["success"]
    world.reset(ROW)
    wrong = world.step(do(action="click", point=[50, 75]))
    assert wrong.done and wrong.reward == 0.0 and "<b> was pressed" in str(wrong.observation)
    world.reset(ROW)
    world.step(do(action="click", point=[210, 20]))
    world.step(do(action="scroll", input_text="down"))
    half = world.step(do(action="click", point=[50, 75]))
    assert half.reward == 0.5 and not half.info["success"]


def test_a_page_loads_nothing_but_itself(browser: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    page = f"""<!doctype html><body><script>window.pressed = null; window.got = []; window.loaded = [];
      const tries = ['http://127.0.0.1:1/', 'https://example.com/', '{secret.as_uri()}'];
      for (const url of tries) fetch(url).then(r => r.text()).then(t => got.push(url)).catch(() => 0);
      for (const url of tries) {{
        const image = new Image(); image.onload = () => loaded.push(url); image.src = url;
        const frame = document.createElement('iframe'); frame.src = url; document.body.append(frame);
      }}
      new WebSocket('ws://127.0.0.1:1/').onopen = () => got.push('socket');</script>"""
    monkeypatch.setattr(world_module, "page_of", lambda widgets: page)
    world = WebPage()
    world.reset(ROW)
    failed: list[str] = []

    def look() -> tuple[Any, Any]:
        world.page.context.on("requestfailed", lambda request: failed.append(request.url))
        world.page.reload()
        world.page.wait_for_timeout(300)
        found = world.page.evaluate("window.got"), world.page.evaluate("window.loaded")
        with pytest.raises(Exception, match="ERR"):
            world.page.goto("https://example.com/")
        return found

    assert world_module._browsing(look) == ([], [])
    assert {url.split("/")[2] for url in failed} >= {"127.0.0.1:1", "example.com"}


def test_others_may_run_an_event_loop_while_a_page_is_open(browser: None) -> None:
    async def nothing() -> int:
        return 1

    WebPage().reset(ROW)
    assert asyncio.run(nothing()) == 1


def test_the_script_fills_in_forms(browser: None) -> None:
    task = web_page(train=4, held_out=2, fields=2)
    assert validate(task, limit=1).ok and web_page(train=4, held_out=2, fields=2).train == task.train
    assert task.world is not None and task.script is not None
    row = task.held_out[0]
    episode = played(task.world, row, task.script)
    assert episode.success and len(episode.actions) == len(plan(row))
    assert gui.coordinate([""], gold=[row["gold"]], episode=[episode]) == [1.0]


def test_first_actions_are_predicted_without_a_browser() -> None:
    task = web_page(train=30, held_out=5, predict=True)
    assert task.world is None and task.reference is not None and validate(task).ok
    assert [r.name for r in task.rewards] == ["action", "coordinate", "form"]
    for row in task.train:
        assert row["prompt"][0]["content"].endswith("</answer>")
        said = task.reference(row)
        for text, want in ((said, [1, 1, 1]), (said.partition("</think>")[2], [1, 1, 0]), ("", [0, 0, 0])):
            assert [r.fn([text], gold=[row["gold"]]) for r in task.rewards] == [[w] for w in want]
    assert {row["gold"]["action"] for row in task.train} == {"click", "scroll"}


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("playwright", reason="the extra `web` is not installed")
    fresh = world_module._browser.__wrapped__
    monkeypatch.setattr(world_module, "chromium", lambda: None)
    with pytest.raises(RecipeError, match="need a browser"):
        fresh()
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(RecipeError, match="coterie\\[web\\]"):
        fresh()
    with pytest.raises(RecipeError, match="turns for all"):
        web_page(fields=3, turns=3)


def test_actions_are_read_and_never_evaluated() -> None:
    assert read("<answer>[{'action': 'Click', 'point': [3.7, 4]}, {'action': 'type'}]</answer>") == Act("click", (3, 4))
    assert read('{"action": "type", "text": "a"}') == Act("type", None, "a")
    for bad in ("", "{", "{}", "{'action': 3}", "{'action': 'click', 'point': [1]}", "{'action': __import__('os')}",
                "{'action': 'click', 'point': [True, 1]}", "{'action': 'click', 'point': [1e400, 1]}",
                "{'action': 'type', 'input_text': 3}", "{" * 9999, "{'a': " + "(" * 900 + "}"):  # fmt: skip
        assert isinstance(read(bad), str), bad


def said(action: str) -> str:
    return f"<think>hm</think><answer>[{action}]</answer>"


def test_the_rewards_of_ui_r1() -> None:
    click, scroll = {"action": "click", "box": [12, 30, 40, 60]}, {"action": "scroll"}
    texts = [said("{'action': 'click', 'point': [12, 34]}"), said("{'action': 'click', 'point': [11, 34]}"),
             "{'action': 'scroll'}", said("{'action': 'scroll'}"), "junk"]  # fmt: skip
    gold = [click, click, scroll, click, click]
    assert gui.action_name(texts, gold) == [1, 1, 1, 0, 0]
    assert gui.coordinate(texts, gold) == [1, 0, 1, 0, 0]  # an edge is inside, and only clicks have a place
    assert gui.form(texts) == [1, 1, 0, 1, 0] and gui.form([f"x{texts[0]}"]) == [0]
    assert gui.brief_form(texts) == [0] * 5 and gui.brief_form([texts[0].partition("</think>")[2]]) == [1]
    failed, none = Episode(failed="x"), Episode()
    for reward in (gui.action_name, gui.coordinate, gui.form, gui.brief_form, gui.gui_r1):
        assert reward(texts[:2], gold=gold[:2], episode=[failed, none]) == [None, 0.0]


def test_the_rewards_of_gui_r1() -> None:
    """The catalogue's examples."""
    typed, hit = (
        said("{'action': 'type', 'input_text': 'hello big world'}"),
        said("{'action': 'click', 'point': [12, 34]}"),
    )
    texts = [typed, hit, hit, "junk", said("{'action': 'type', 'input_text': 'a b c'}")]
    gold = [{"action": "type", "input_text": "hello world"}, {"action": "click", "point": [100, 100]},
            {"action": "click", "box": [12, 30, 40, 60]}, {"action": "click", "point": [0, 0]},
            {"action": "type", "input_text": "a x y"}]  # fmt: skip
    assert gui.gui_r1(texts, gold) == pytest.approx([1.0, 1.0, 0.2, 0.0, 0.2])
    assert gui.gui_r1(texts, gold, form_weight=0.0) == [1, 1, 0, 0, 0]
    more = ["{'action': 'scroll', 'input_text': 'down'}", "{'action': 'scroll', 'input_text': 'sideways'}",
            "{'action': 'type', 'input_text': 'no input text'}", "{'action': 'press_back'}"]  # fmt: skip
    wants = [{"action": "scroll", "input_text": "down"}, {"action": "scroll", "input_text": "down"},
             {"action": "type", "input_text": "x"}, {"action": "press_back"}]  # fmt: skip
    assert gui.gui_r1([said(m) for m in more], wants) == pytest.approx([1.0, 0.0, 0.0, 1.0])
