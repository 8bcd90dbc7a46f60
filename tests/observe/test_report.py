"""Curves and report of made-up runs."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from coterie.observe import curves, report, rollout_store
from coterie.observe.metrics import MetricsLog
from coterie.observe.rollout_page import rollouts_section
from coterie.observe.run_dir import RunDir
from coterie.rollouts import Prompt, Rollouts

EVIL = "<script>alert('x')</script>&\"<b>"


def rows_of(steps):
    out = []
    for step in range(steps + 1):
        row = {"step": step, "time/generate": 0.5, "time/learn": 0.25, "time/step": 1.0}
        if step:
            row |= {"reward/mean": step / steps, "accuracy": 0.5, "entropy/mean": 1.0, "grad/norm": None}
        if step % 5 == 0:
            row |= {"eval/accuracy": 0.3, "eval/accuracy_low": 0.2, "eval/accuracy_high": 0.4, "time/eval": 0.2}
        out.append(row)
    return out


@pytest.fixture
def run(tmp_path):
    run = RunDir.create(
        tmp_path / "run", task=EVIL, method="grpo", recipe=f"# {EVIL}\nmodel: {{init: {{layers: 2}}}}\n", seed=0
    )
    log = MetricsLog(run.metrics)
    for row in rows_of(10):
        log.append(row)
    return run


def record(run, step):
    mask = torch.tensor([[True, True], [True, False]])
    rollouts = Rollouts(
        [Prompt((1,))],
        {
            "groups": torch.tensor([0, 0]),
            "mask": mask,
            "lengths": mask.sum(-1),
            "tokens": torch.ones(2, 2, dtype=torch.long),
            "truncated": torch.tensor([True, False]),
            "rewards": torch.tensor([0.25, 1.0]),
            "correct": torch.tensor([False, True]),
            "logp_old": torch.tensor([[0.0, -10.0], [-0.5, 0.0]]),
            "advantages": torch.tensor([-1.0, 1.0]),
        },
        texts=[f"w{EVIL}", "r"],
    )
    rollout_store.write(run.rollout_file(step), rollouts, [f"ask {EVIL}"], token_texts=[["w", EVIL], ["r"]])


def panels(rows):
    return {p.__name__ for p in curves.PANELS if p(Figure().add_subplot(), rows)}


def test_panels_without_data_are_left_out():
    assert panels(rows_of(10)) == {"held_out", "training", "entropy", "time_split"}
    assert panels([{"step": 1, "clip/fraction": 0.1}]) == {"distance"}
    assert panels([{"step": 0, "eval/accuracy": 0.5}]) == {"held_out"}
    assert panels([]) == set()


def test_the_interval_is_drawn_and_null_metrics_are_gaps():
    axes = Figure().add_subplot()
    rows = rows_of(10)
    rows[5]["eval/accuracy"] = None
    rows[5]["eval/accuracy_low"] = rows[5]["eval/accuracy_high"] = None
    curves.held_out(axes, rows)
    assert list(axes.lines[0].get_xdata()) == [0, 10]
    assert axes.collections[0].get_paths()[0].vertices[:, 1].max() == 0.4


def test_the_time_split_stacks_to_the_step_without_its_evaluation():
    axes = Figure().add_subplot()
    curves.time_split(axes, rows_of(10))
    tops = [c.get_paths()[0].vertices[:, 1].max() for c in axes.collections]
    assert tops == pytest.approx([0.5, 0.75, 1.0])


def test_smoothing_keeps_length_mean_level_and_ends():
    values = np.arange(100.0)
    assert curves.smooth(values)[50] == pytest.approx(50)
    assert len(curves.smooth(values)) == 100
    assert curves.smooth(np.array([3.0])) == pytest.approx([3.0])


def test_draw_writes_one_png_and_nothing_without_data(tmp_path):
    assert curves.draw(rows_of(10), tmp_path / "curves.png", title="t $x_")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not curves.draw([], tmp_path / "none.png", title="t")
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


class Strict(HTMLParser):
    """Collects tags, and every attribute that could load something."""

    def __init__(self):
        super().__init__()
        self.tags, self.loads, self.open, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "action")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_report_is_whole_escaped_and_self_contained(run):
    curves.draw(MetricsLog(run.metrics).read(), run.curves, title="t")
    for step in (1, 2, 3, 4, 10):
        record(run, step)
    run.set_status("failed", 10, EVIL)
    path = report.write(run.path)
    assert path == run.report
    html = path.read_text(encoding="utf-8")
    page = Strict()
    page.feed(html)
    assert page.open == []
    assert not {"script", "link", "b>"} & set(page.tags)
    assert [v[:22] for v in page.loads] == ["data:image/png;base64,"]
    assert base64.b64decode(page.loads[0][22:]) == run.curves.read_bytes()
    assert not re.search(r"url\(|@import|https?:", html.split("<body>")[0])
    assert page.text.count(EVIL) >= 5  # title, task, status, recipe, prompts, completions
    assert "held-out accuracy 30.0% → 30.0% (95% interval 20.0–40.0%)" in page.text
    assert "30.0% (20.0%–40.0%)" in page.text
    assert "accuracy low" not in page.text
    assert "prefers-color-scheme: dark" in html
    assert [f"step {s}" in page.text for s in (1, 2, 3, 4, 10)] == [True, False, True, False, True]
    assert '{"init": {"layers": 2}}' in page.text


def test_a_report_of_a_run_that_has_not_begun(tmp_path):
    run = RunDir.create(tmp_path / "run", task="sort", method="grpo", recipe="steps: 1\n", seed=0)
    html = report.write(run.path).read_text()
    assert "grpo on sort" in html
    assert "Sample rollouts" not in html
    assert "<img" not in html


def test_rollouts_of_a_prompt_are_side_by_side_best_first(run):
    record(run, 1)
    html = rollouts_section([(1, rollout_store.read(run.rollout_file(1)))])
    assert html.count("class=group") == 1
    assert html.index('class="rollout right"') < html.index('class="rollout wrong"')
    assert "(cut off)" in html
    shades = [float(x) for x in re.findall(r"var\(--heat\),([0-9.]+)", html)]
    assert shades == pytest.approx([0.06, 0.0, 0.6])
    assert EVIL not in html


def test_completions_without_pieces_are_plain_text():
    row = {"group": 0, "sample": 0, "prompt": "p", "completion": "<i>", "reward": 1.0}
    assert "&lt;i&gt;" in rollouts_section([(1, [row])])
    assert "(empty)" in rollouts_section([(1, [row | {"completion": ""}])])
    assert rollouts_section([(1, [])]) == ""


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], ""),
        ([{"step": 1, "reward/mean": 0.1}, {"step": 2, "reward/mean": 0.9}], "reward 0.1 → 0.9"),
        ([{"step": 0, "eval/accuracy": 0.1}, {"step": 2, "eval/accuracy": None}], "held-out accuracy 10.0% → 10.0%"),
    ],
)
def test_headline(rows, says):
    assert report.headline(rows) == says


def test_the_report_shows_the_first_and_the_last_episodes(run):
    """Of every step that was written, and whatever the world says is text."""
    run.samples.mkdir()
    turn = {"action": EVIL, "observation": {"role": "tool", "content": EVIL}, "reward": 0.5}
    for step, prompt in ((0, "first>"), (5, "between>"), (10, [{"role": "user", "content": "last>"}])):
        last = {"action": "", "observation": None, "reward": 0.0}
        told = [
            {"prompt": prompt, "turns": [turn, last], "success": step > 0, "failed": None},
            {"prompt": prompt, "turns": [], "success": False, "failed": "step raised ValueError: x"},
        ]
        (run.samples / f"step-{step:06d}.json").write_text(json.dumps(told))
    page = report.write(run.path).read_text()
    section = page[page.index("<h2>Episodes</h2>") :]
    assert section.count("first&gt;") == section.count("user: last&gt;") == 2 and "between" not in section
    assert "<script" not in page and "tool: &lt;script" in section and "(nothing)" in section
    assert section.count(">solved<") == 1 and section.count(">not solved<") == 1
    assert section.count("the environment failed: step raised ValueError: x") == 2
