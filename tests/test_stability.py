"""The bench of stale batches: its table and verdicts, going on where it stopped, one cell, and its page."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from bench import stability
from bench.stability import BASE, LATE, OBJECTIVES, Objective, cells, figure
from bench.stability.summary import FALLS, LEARNS, UNDECIDED, rows, shown, verdict
from coterie.recipe import resolve


def cell(objective: str = "GRPO (PPO-clip)", late: int = 0, seed: int = 0, **changes: Any) -> dict[str, Any]:
    plain = {"accuracy": 0.5, "start": 0.3, "entropy": 1.0, "kl": 0.1, "grad_norm": 2.0}
    return {"objective": objective, "method": "grpo", "late": late, "seed": seed, **plain, **changes}


@pytest.mark.parametrize(
    ("accuracies", "want"),
    [([0.5, 0.52], LEARNS), ([0.3, 0.5], UNDECIDED), ([0.1, 0.12], FALLS), ([0.5], UNDECIDED), ([0.3, 0.3], UNDECIDED)],
)
def test_verdicts(accuracies: list[float], want: str) -> None:
    assert verdict([cell(accuracy=a, seed=i) for i, a in enumerate(accuracies)]) == want


def test_rows_are_means_with_intervals_the_best_late_ones_first() -> None:
    found = rows(
        [cell(seed=s, late=n, accuracy=0.4 + 0.1 * s) for s in (0, 1) for n in (0, 4)]
        + [cell("GSPO", 4, accuracy=0.9, kl=None), cell("nobody", 4)]
    )
    assert [row["objective"] for row in found] == ["GSPO", "GRPO (PPO-clip)"]
    point = found[1]["late"]["4"]
    assert point["seeds"] == 2 and point["accuracy"] == pytest.approx([0.45, 12.706 * 0.05], abs=1e-3)
    assert shown(point, "accuracy") == "0.45 ± 0.64" and shown(found[0]["late"]["4"], "accuracy") == "0.90"
    assert shown(found[0]["late"]["4"], "kl") == "" and shown(None, "kl") == ""


def test_a_stopped_bench_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "PATH", tmp_path / "stability" / "cells.json")
    record = cells.Record.load()
    assert record.cells == []
    record.add(cell(late=4))
    record.add(cell("GSPO", 1))
    again = cells.Record.load()
    assert again.has("GSPO", 1, 0) and not again.has("GSPO", 4, 0) and len(again.cells) == 2
    again.forget(["GSPO"])
    assert [c["objective"] for c in again.cells] == ["GRPO (PPO-clip)"]
    assert json.loads(cells.PATH.read_text())["table"] == rows(record.cells)


def test_every_objective_that_is_there_resolves_and_the_others_are_skipped() -> None:
    there = [o for o in OBJECTIVES if not o.missing()]
    assert len(there) >= 8 and len({o.label for o in OBJECTIVES}) == len(OBJECTIVES)
    for objective in there:
        recipe = resolve(method=objective.method, overrides=[*BASE, *objective.overrides])
        assert recipe.settings.draw.prompts == 8 and not recipe.chain["rewards.shaping"]
    assert Objective("x", "grpo+no-such-method").missing() == ["no-such-method"]
    assert LATE[0] == 0 and max(LATE) == 64


def test_a_cell_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "UPDATES", 3)
    monkeypatch.setattr(cells, "WARM", (*stability.WARM, "warm_start.steps=2"))
    with cells.warm_models([0]) as models:
        found = cells.play(Objective("GRPO", "grpo", ["task.dense=true"]), 2, 0, models[0])
    assert not models[0].exists()
    assert found["late"] == 2 and found["broke"] is None and found["method"] == "grpo task.dense=true"
    assert found["kl"] > 0 and found["grad_norm"] > 0 and found["entropy"] > 0 and len(found["curve"]) == 1


def test_page_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(__file__).parents[1] / "docs" / "generate.py"
    spec = importlib.util.spec_from_file_location("docs_generate_stability", source)
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    monkeypatch.setattr(generator, "STABILITY", tmp_path / "cells.json")
    assert "no recorded results yet" in generator.stability_page()
    monkeypatch.setattr(cells, "PATH", tmp_path / "cells.json")
    record = cells.Record([])
    for late in (0, 64):
        record.add(cell("GSPO", late, accuracy=0.9, kl=None))
        record.add(cell("OPMD", late, 0, accuracy=0.1))
        record.add(cell("OPMD", late, 1, accuracy=0.11))
    page = generator.stability_page()
    assert "- undecided: GSPO" in page and "- falls: OPMD" in page and "- learns: none" in page
    assert "| GSPO | 0.90 | 0.90 |" in page and "0.10 ± 0.06" in page
    monkeypatch.setattr(figure, "PATH", tmp_path / "stability.png")
    figure.draw(rows(record.cells))
    assert figure.PATH.stat().st_size > 1000


def test_the_bench_command_plays_what_is_missing_and_shows_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.__main__ import BENCHES, Options
    from bench.stability import __main__ as command

    played: list[Any] = []
    drawn: list[Any] = []
    record = cells.Record([cell("GSPO", late) for late in (0, 64)])
    monkeypatch.setattr(cells.Record, "load", staticmethod(lambda: record))
    monkeypatch.setattr(command, "play_missing", lambda *asked: played.append(asked))
    monkeypatch.setattr(figure, "draw", drawn.append)
    assert "stability" in BENCHES
    found = stability.run(Options(quick=True, threads=1, runs=None, only="GSPO"))
    assert [[o.label for o in played[0][0]], played[0][1]] == [["GSPO"], 1] and played[0][2] is record
    assert drawn == [rows(record.cells)]
    assert found.rows == [
        {"objective": "GSPO", "0 late": "0.50", "1 late": "", "4 late": "", "16 late": "", "64 late": "0.50"}
    ]
