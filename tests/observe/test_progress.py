from __future__ import annotations

import io

import pytest
from rich.console import Console

from coterie.observe.progress import Progress, clock_text, loss_note, sparkline, time_split

ROW = {
    "step": 3,
    "reward/mean": 0.5,
    "accuracy": 0.25,
    "groups/dead_share": 0.125,
    "grad/norm": 0.7,
    "ratio/mean": 1.0,
    "loss/total": 0.0001,
    "kl/ref": float("nan"),
    "reward/errors": 0.0,
    "reward/timeouts": 2.0,
    "tokens/per_second": 12345.6,
    "time/generate": 0.6,
    "time/learn": 0.3,
    "time/step": 1.0,
}


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=160, color_system=None)


def shown(out):
    return out.file.getvalue()


def test_one_plain_line_a_step_off_a_terminal():
    out = console(False)
    with Progress(10, 0, title="t", console=out) as progress:
        progress.update(0, {"step": 0, "eval/accuracy": 0.3})
        progress.update(3, ROW)
        progress.note("[a note] with brackets")
    lines = shown(out).splitlines()
    assert lines[0] == "step 0/10  held-out 30.0%"
    assert lines[1].startswith("step 3/10  reward 0.5  train 25.0%  dead groups 12.5%  grad 0.7  tokens/s 12,346")
    assert "timed out 2" in lines[1]
    assert "ETA" in lines[1]
    assert not any(word in lines[1] for word in ("KL", "failed", "loss", "held-out"))
    assert "near zero" in lines[2]
    assert lines[3] == "[a note] with brackets"


def test_each_reason_for_a_small_loss_is_given_once_in_a_log():
    out = console(False)
    with Progress(10, 0, console=out) as progress:
        for step in range(1, 7):
            progress.update(step, ROW | {"grad/norm": step, "groups/dead_share": float(step % 2)})
    assert shown(out).count("near zero") == 1
    assert shown(out).count("every group agrees") == 1


def test_quiet_is_silent():
    for terminal in (True, False):
        out = console(terminal)
        with Progress(10, 0, quiet=True, console=out) as progress:
            progress.update(1, ROW)
            progress.note("x")
        assert shown(out) == ""


def test_a_panel_on_a_terminal_keeps_the_last_evaluation():
    out = console(True)
    with Progress(10, 0, title="grpo on [sort]", console=out) as progress:
        progress.update(0, {"step": 0, "eval/accuracy": 0.31})
        progress.update(3, ROW)
    text = shown(out).split("grpo on [sort]")[-1]
    for part in ("3/10", "held-out 31.0%", "train 25.0%", "generate 60%", "other 10%", "near zero"):
        assert part in text


def test_no_color_means_plain_lines(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = console(True)
    with Progress(10, 0, console=out) as progress:
        progress.update(3, ROW)
    assert shown(out).startswith("step 3/10")
    assert "\x1b" not in shown(out)


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_not_finite_is_named_and_not_just_missing(terminal):
    out = console(terminal)
    with Progress(10, 0, console=out) as progress:
        progress.update(3, ROW | {"grad/norm": float("nan"), "kl/ref": float("inf")})
    text = shown(out)
    assert "grad/norm, kl/ref" in text
    assert "not finite" in text


def test_a_terminal_that_cannot_redraw_gets_plain_lines_at_once(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = console(True)
    with Progress(10, 0, console=out) as progress:
        progress.update(3, ROW)
        assert shown(out).startswith("step 3/10  reward 0.5")


def test_eta_counts_this_sessions_steps_only(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("coterie.observe.progress.time.monotonic", lambda: now[0])
    progress = Progress(100, 40, quiet=True)
    assert progress.eta() == ""
    now[0] = 20.0
    progress.update(50, ROW)
    assert progress.eta() == "1:40"
    progress.update(100, ROW)
    assert progress.eta() == ""


def test_the_warm_start_is_not_in_the_eta(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("coterie.observe.progress.time.monotonic", lambda: now[0])
    progress = Progress(100, 0, quiet=True)
    now[0] = 500.0
    progress.update(0, {"step": 0})
    now[0] = 501.0
    progress.update(1, ROW)
    assert progress.eta() == "1:39"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "near zero on policy"),
        ({"groups/dead_share": 1.0}, "every group agrees"),
        ({"loss/total": 0.4}, None),
        ({"grad/norm": 0.0}, None),
        ({"ratio/mean": 1.2}, None),
        ({"ratio/mean": None}, None),
    ],
)
def test_loss_note(change, says):
    note = loss_note(ROW | change)
    assert note is None if says is None else says in note


def test_time_split_adds_up():
    assert time_split(ROW) == pytest.approx({"generate": 0.6, "learn": 0.3, "other": 0.1})
    assert time_split({}) == {}


def test_sparkline_and_clock():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([1.0]) == ""
    assert [clock_text(s) for s in (0, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]
