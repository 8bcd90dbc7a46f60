"""Live progress of a run: what it learns, not its loss. A panel on a terminal, one line a step anywhere else."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from coterie.observe.metrics import nonfinite

Format = Callable[[float], str]


def percent(x: float) -> str:
    return f"{100 * x:.1f}%"


def short(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def gibibytes(x: float) -> str:
    return f"{x:.1f} GiB"


ROWS: dict[str, list[tuple[str, str, Format]]] = {
    "score": [("reward", "reward/mean", short), ("spread", "reward/std", short)],
    "accuracy": [
        ("train", "accuracy", percent),
        ("held-out", "eval/accuracy", percent),
        ("greedy", "eval/greedy", percent),
    ],
    "groups": [("dead groups", "groups/dead_share", percent), ("advantage spread", "advantage/std", short)],
    "update": [
        ("grad", "grad/norm", short),
        ("clip", "clip/fraction", percent),
        ("KL", "kl/ref", short),
        ("entropy", "entropy/mean", short),
    ],
    "output": [
        ("length", "length/mean", short),
        ("truncated", "length/truncated_share", percent),
        ("tokens/s", "tokens/per_second", short),
        ("memory", "system/rss_gib", gibibytes),
    ],
    "graders": [("failed", "reward/errors", short), ("timed out", "reward/timeouts", short)],
}
"""What is shown, row by row: label, metric, format. A metric that is not there is not shown."""

HIDDEN_AT_ZERO = {"reward/errors", "reward/timeouts"}
SPARKS = "▁▂▃▄▅▆▇█"


def fields(metrics: Mapping[str, Any], row: str) -> list[tuple[str, str]]:
    """(label, value) of the metrics of a row that are known."""
    return [
        (label, form(value))
        for label, key, form in ROWS[row]
        if (value := _number(metrics, key)) is not None and (value or key not in HIDDEN_AT_ZERO)
    ]


def loss_note(metrics: Mapping[str, Any]) -> str | None:
    """Why the loss says nothing, where it is near zero although the policy learns (or because it cannot)."""
    if _number(metrics, "groups/dead_share") == 1.0:
        return "every group agrees on its reward: nothing to compare, so no gradient from the rewards in this step"
    loss, gradient, ratio = (_number(metrics, k) for k in ("loss/total", "grad/norm", "ratio/mean"))
    if loss is None or not gradient or abs(loss) > 0.05 or ratio is None or abs(ratio - 1) > 0.01:
        return None
    return (
        "the loss is near zero on policy by construction: ratios are 1 and advantages cancel within a group; "
        f"its gradient does not (norm {short(gradient)})"
    )


def time_split(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Share of the step's time in each phase, largest first; what no phase accounts for is 'other'."""
    total = _number(metrics, "time/step")
    if not total:
        return {}
    names = [k for k in metrics if k.startswith("time/") and k != "time/step"]
    shares = {k.removeprefix("time/"): (_number(metrics, k) or 0.0) / total for k in names}
    shares["other"] = max(1.0 - sum(shares.values()), 0.0)
    return {k: v for k, v in sorted(shares.items(), key=lambda item: -item[1]) if v >= 0.005}


def sparkline(values: list[float]) -> str:
    """Eight heights between the smallest and the largest value."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    return "".join(SPARKS[round(7 * (v - low) / (high - low))] if high > low else SPARKS[0] for v in values)


def plain_line(step: int, total: int, metrics: Mapping[str, Any], eta: str) -> str:
    """One step as text, for logs."""
    parts = [f"{label} {value}" for row in ROWS for label, value in fields(metrics, row)]
    if bad := nonfinite(metrics):
        parts.append(f"not finite {', '.join(bad)}")
    return "  ".join([f"step {step}/{total}", *parts, *([f"ETA {eta}"] if eta else [])])


class Progress:
    """A context manager: `update` after each step, `note` for a message that stays."""

    def __init__(
        self, total: int, start: int = 0, quiet: bool = False, title: str = "", console: Console | None = None
    ) -> None:
        self.total, self.step, self.quiet, self.title = total, start, quiet, title
        self.console = console or Console(highlight=False)
        self.metrics: dict[str, Any] = {}
        self._first, self._since = start, time.monotonic()
        self._history: dict[str, deque[float]] = {k: deque(maxlen=24) for k in ("reward/mean", "eval/accuracy")}
        self._live: Live | None = None
        self._said: set[str] = set()

    def __enter__(self) -> Progress:
        self._since = time.monotonic()
        # a dumb terminal (TERM=dumb: editors, some job consoles) cannot redraw: a panel would stay invisible on it
        redraws = self.console.is_terminal and not self.console.is_dumb_terminal
        if not self.quiet and redraws and "NO_COLOR" not in os.environ:
            self._live = Live(get_renderable=self._panel, console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show the metrics of a finished step. Evaluations stay on screen until the next one."""
        if step == 0:  # warm start and first evaluation are over: steps are timed from here
            self._since = time.monotonic()
        kept = {k: v for k, v in self.metrics.items() if k.startswith("eval/")}
        self.step, self.metrics = step, kept | dict(metrics)
        for key, values in self._history.items():
            if (value := _number(metrics, key)) is not None:
                values.append(value)
        if self._live is None and not self.quiet:
            self._print(plain_line(step, self.total, metrics, self.eta()))
            reason = loss_note(metrics)
            if reason is not None and reason.split(":")[0] not in self._said:  # each reason once a log
                self._said.add(reason.split(":")[0])
                self._print(f"  note: {reason}")

    def note(self, text: str) -> None:
        """A message that stays above the panel."""
        if not self.quiet:
            self._print(text)

    def eta(self) -> str:
        """Time left at this session's mean pace, "" before the first step."""
        done = self.step - self._first
        if done <= 0 or self.step >= self.total:
            return ""
        return clock_text((time.monotonic() - self._since) / done * (self.total - self.step))

    def _print(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def _panel(self) -> RenderableType:
        eta = self.eta()
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=self.total, completed=self.step, width=28),
            Text(f"{self.step}/{self.total}", style="bold"),
            Text(clock_text(time.monotonic() - self._since) + (f", {eta} left" if eta else ""), style="dim"),
        )
        body = Table.grid(padding=(0, 2, 0, 0))
        for row in ROWS:
            shown = [self._field(label, value) for label, value in fields(self.metrics, row)]
            if shown:
                body.add_row(Text(row, style="dim"), Text("   ").join([*shown, *self._trend(row)]))
        if bad := nonfinite(self.metrics):
            body.add_row(Text("not finite", style="dim"), Text(", ".join(bad), style="bold red"))
        if split := time_split(self.metrics):
            body.add_row(Text("time", style="dim"), Text("   ".join(f"{k} {100 * v:.0f}%" for k, v in split.items())))
        parts: list[RenderableType] = [head, body]
        if reason := loss_note(self.metrics):
            parts.append(Text(reason, style="dim italic"))
        return Group(*parts)

    def _field(self, label: str, value: str) -> Text:
        return Text.assemble((f"{label} ", "dim"), (value, "bold green" if label == "held-out" else "bold"))

    def _trend(self, row: str) -> list[Text]:
        key = {"score": "reward/mean", "accuracy": "eval/accuracy"}.get(row)
        return [Text(sparkline(list(self._history[key])), style="cyan")] if key else []


def clock_text(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _number(metrics: Mapping[str, Any], key: str) -> float | None:
    value = metrics.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
