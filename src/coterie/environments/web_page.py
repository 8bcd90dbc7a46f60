"""A page in a real browser: click, type and scroll on local pages, through Playwright and Chromium (extra `web`)."""

from __future__ import annotations

import atexit
import functools
import html
import os
import queue
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from coterie.environments.base import Step
from coterie.environments.gui import DIRECTIONS, NAMES, Act, read
from coterie.errors import RecipeError

WIDTH, HEIGHT = 400, 240
"""The size of what is seen; a page is two such screens."""
_LOOK = """() => [...document.querySelectorAll('[data-label]')].map(e => {
  const b = e.getBoundingClientRect();
  return {label: e.dataset.label, kind: e.dataset.kind, box: [b.left, b.top, b.right, b.bottom].map(Math.round),
          value: e.value || '', on: !!e.checked, focus: e === document.activeElement};
})"""


class WebPage:
    """Rows have `widgets` (kind, label, box) and `goal` (button, fields, ticks).

    An observation lists the widgets in sight with their boxes and what is in them. Actions are objects (see
    `coterie.environments.gui.read`): click at a point, type into what has the focus, scroll up or down by a screen. To
    press a button ends the episode: with the share of fields and ticks that are as they should be if it is the right
    one, else with 0; 1 is success. Pages are files; every other request is refused, so nothing leaves the machine.
    """

    def reset(self, row: Mapping[str, Any]) -> str:
        return _browsing(lambda: self._reset(row))

    def step(self, action: str) -> Step:
        return _browsing(lambda: self._step(action))

    def _reset(self, row: Mapping[str, Any]) -> str:
        self.row = row
        self._close()
        self.page, self._closing = _open(page_of(row["widgets"]), self)
        return self._seen()

    def _step(self, action: str) -> Step:
        act = read(action)
        if isinstance(act, Act) and act.action not in NAMES:
            act = f"there is no action {act.action[:20]!r}; there are {', '.join(NAMES)}"
        problem = act if isinstance(act, str) else self._do(act)
        pressed = self.page.evaluate("window.pressed")
        if pressed is None:
            seen = self._seen()
            told = f"error: {problem}\n{seen}" if problem else seen
            return Step(self._said(told), info={"success": False, "valid": problem is None, "state": seen})
        score = self._score(pressed)
        self._close()
        return Step(self._said(f"{pressed} was pressed."), score, True, {"success": score == 1.0, "valid": True})

    def _do(self, act: Act) -> str | None:
        """Do it; what is wrong with it, where it cannot be done."""
        if act.action == "click":
            if act.point is None or not (0 <= act.point[0] < WIDTH and 0 <= act.point[1] < HEIGHT):
                return f'a click has a "point" from [0, 0] to [{WIDTH - 1}, {HEIGHT - 1}]'
            self.page.mouse.click(*act.point)
        elif act.action == "type":
            if not act.text:
                return 'typing needs an "input_text"'
            self.page.keyboard.press("Control+a")
            self.page.keyboard.type(act.text[:200])
        else:
            if act.text.lower() not in DIRECTIONS:
                return 'scrolling has the "input_text" up or down'
            self.page.evaluate(f"window.scrollBy(0, {HEIGHT if act.text.lower() == 'down' else -HEIGHT})")
        return None

    def _score(self, pressed: str) -> float:
        goal, now = self.row["goal"], {w["label"]: w for w in self.page.evaluate(_LOOK)}
        if pressed != goal["button"]:
            return 0.0
        met = [now[label]["value"] == text for label, text in goal["fields"].items()]
        met += [now[label]["on"] == on for label, on in goal["ticks"].items()]
        return sum(met) / len(met) if met else 1.0

    def _seen(self) -> str:
        return shown(self.page.evaluate(_LOOK))

    def _said(self, text: str) -> str:
        return f"\n{text}\n> " if isinstance(self.row["prompt"], str) else text

    def _close(self) -> None:
        closing = getattr(self, "_closing", None)
        if closing is not None:
            closing()


def shown(widgets: Sequence[Mapping[str, Any]]) -> str:
    """The widgets in sight, one a line."""
    lines = []
    for w in widgets:
        if w["box"][1] >= HEIGHT or w["box"][3] <= 0:
            continue
        what = f" = {w['value']!r}" if w["kind"] == "field" else f" = {'on' if w['on'] else 'off'}"
        lines.append(f"{w['kind']} {w['label']} {w['box']}" + ("" if w["kind"] == "button" else what))
        lines[-1] += " (focus)" if w["focus"] else ""
    return "\n".join(lines) or "nothing in sight"


def page_of(widgets: Sequence[Mapping[str, Any]]) -> str:
    """The page of some widgets, each where its box says."""
    tags = {
        "field": '<input type="text" autocomplete="off" {}>',
        "tick": '<input type="checkbox" {}>',
        "button": '<button onclick="window.pressed = this.dataset.label" {}>{}</button>',
    }
    parts = []
    for w in widgets:
        left, top, right, bottom = w["box"]
        label = html.escape(w["label"], quote=True)
        place = (
            f'data-label="{label}" data-kind="{w["kind"]}" style="position:absolute;box-sizing:border-box;margin:0;'
            f'left:{left}px;top:{top}px;width:{right - left}px;height:{bottom - top}px"'
        )
        parts.append(tags[w["kind"]].format(place, label))
    return (
        '<!doctype html><meta charset="utf-8"><script>window.pressed = null</script>'
        f'<body style="margin:0;height:{2 * HEIGHT}px">{"".join(parts)}</body>'
    )


def chromium() -> str | None:
    """The system's Chromium, where there is one."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


@functools.cache
def _calls() -> queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]]:
    """What the browser's thread is to call, and where the answers go."""
    waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()

    def serve() -> None:
        while True:
            future, call = waiting.get()
            try:
                future.set_result(call())
            except Exception as error:  # the caller's, who waits for it
                future.set_exception(error)

    threading.Thread(target=serve, name="browser", daemon=True).start()
    return waiting


def _browsing(call: Callable[[], Any]) -> Any:
    """Call it on the browser's own thread: Playwright runs an event loop in the thread that calls it, in which nobody
    else could run one."""
    future: Future[Any] = Future()
    _calls().put((future, call))
    return future.result()


@functools.cache
def _browser() -> tuple[Any, str]:
    """One browser for this process, which resolves no names, and the folder of its pages."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise RecipeError("web pages need the package playwright", hint="pip install coterie[web]") from error
    path = chromium()
    if path is None:
        raise RecipeError("web pages need a browser", hint="install Chromium, for example apt install chromium")
    driver = sync_playwright().start()
    arguments = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--disable-gpu"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium's own does not start as root
    browser = driver.chromium.launch(executable_path=path, args=arguments)

    folder = tempfile.mkdtemp(prefix="coterie-pages-")

    def stop() -> None:
        browser.close()
        driver.stop()

    def end() -> None:
        _browsing(stop)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return browser, folder


_abandoned: list[Any] = []
"""Contexts that are done with: closed when the next one opens, because nothing may talk to the browser while Python
collects garbage."""


def _open(text: str, owner: WebPage) -> tuple[Any, Any]:
    """A page of its own that shows a text and can load nothing else, and what is to be called when it is done with."""
    browser, folder = _browser()
    while _abandoned:
        _abandoned.pop().close()
    with tempfile.NamedTemporaryFile("w", suffix=".html", dir=folder, delete=False, encoding="utf-8") as file:
        file.write(text)
    address = Path(file.name).as_uri()
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, service_workers="block", offline=True)
    context.set_default_timeout(10_000)
    context.route("**/*", lambda route: route.continue_() if route.request.url == address else route.abort())
    page = context.new_page()
    page.goto(address)
    return page, weakref.finalize(owner, _abandoned.append, context)
