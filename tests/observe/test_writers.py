from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest

from coterie.errors import RecipeError
from coterie.observe.writers import numbers, open_writers

ROW = {"step": 3, "reward/mean": 0.5, "kl/ref": None, "name": "x", "version": 4}


def test_only_numbers_are_written():
    assert numbers(ROW) == {"reward/mean": 0.5, "version": 4.0}


def test_no_writers_import_nothing():
    assert open_writers([], "anywhere", "t") == []


def test_tensorboard_gets_the_metrics_by_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (writer,) = open_writers(["tensorboard"], tmp_path, "grpo on sort")
    writer.write(3, ROW)
    writer.write(4, {"reward/mean": 0.75})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(3, 0.5), (4, 0.75)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_the_metrics_by_step(tmp_path, monkeypatch, name):
    calls = []
    run = SimpleNamespace(
        log=lambda metrics, step: calls.append((step, metrics)), finish=lambda: calls.append(("finished", {}))
    )
    opened = {}
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=lambda **how: opened.update(how) or run))
    (writer,) = open_writers([name], tmp_path / "my-run", "title")
    writer.write(3, ROW)
    writer.close()
    assert calls == [(3, {"reward/mean": 0.5, "version": 4.0}), ("finished", {})]
    assert opened["name"] == "my-run"
    assert opened["resume"] == "allow"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, name):
    def missing(package):
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(RecipeError, match=rf"coterie\[{name}\]"):
        open_writers([name], tmp_path, "t")


def test_an_unknown_writer_names_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'wandb'"):
        open_writers(["wanbd"], tmp_path, "t")
