"""Runs and models that were edited, cut off or cannot be written: one clear message, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.api import start
from coterie.recipe import resolve
from tests.e2e.conftest import TINY

NO_MODEL = [a for a in TINY if not a.startswith("model=")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    path = tmp_path_factory.mktemp("made") / "run"
    start(resolve(overrides=TINY), path, quiet=True)
    return path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "checkpoints/step-000002/policy", tmp_path / "model"))


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(("old", "new"), [("width: 16", "width: 32"), ("lr: 0.001\n    beta1", "lr: 0.1\n    beta1")])
def test_a_run_keeps_its_recipe(old: str, new: str, run: Path, cli: Callable) -> None:
    recipe = run / "recipe.yaml"
    text, metrics = recipe.read_text(), (run / "metrics.jsonl").read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))
    answer = cli("resume", "run", "steps=3", "-q")
    assert answer.code == 5 and "recipe.yaml was changed" in answer.err
    assert "coterie train run/recipe.yaml" in answer.err
    assert (run / "metrics.jsonl").read_text() == metrics
    recipe.write_text(text)
    assert cli("resume", "run", "steps=3", "-q").code == 0
    assert cli("resume", "run", "steps=4", "-q").code == 0, "an extended run may be extended again"


def test_a_stop_between_the_two_files_of_an_extension_loses_nothing(run: Path, cli: Callable) -> None:
    old = (run / "recipe.yaml").read_text()
    assert cli("resume", "run", "steps=3", "-q").code == 0
    (run / "recipe.yaml").write_text(old)  # the manifest knew already, the recipe was not yet written
    assert cli("resume", "run", "steps=4", "-q").code == 0


def test_a_manifest_that_is_broken_is_said_at_once_and_may_be_removed(run: Path, cli: Callable) -> None:
    (run / "manifest.json").write_text("{")
    answer = cli("resume", "run", "steps=3", "-q")
    assert answer.code == 5 and "manifest.json" in answer.err and "remove it" in answer.err
    (run / "manifest.json").unlink()
    assert cli("resume", "run", "steps=3", "-q").code == 0


def test_an_older_checkpoint_is_not_taken_in_silence(run: Path, cli: Callable) -> None:
    halve(run / "checkpoints/step-000002/state.pt")
    shutil.copytree(run / "checkpoints/step-000002", run / "checkpoints/step-000003")
    for args in (["eval", "run"], ["export", "run", "out"]):
        answer = cli(*args)
        older = (run / "checkpoints/step-000000").is_dir()
        assert answer.code == (0 if older else 5)
        assert ("step-000003 is damaged" if older else "no checkpoint of the run is complete") in answer.err


def test_a_run_is_no_recipe(run: Path, cli: Callable) -> None:
    answer = cli("train", "run")
    assert answer.code == 2 and "run is a run" in answer.err
    assert "coterie resume run" in answer.err and "coterie train run/recipe.yaml" in answer.err


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda m: halve(m / "model.safetensors"), "cannot load the model"),
        (lambda m: (m / "model.safetensors").unlink(), "cannot load the model"),
        (lambda m: edit(m / "config.json", hidden_size=32), "other shapes than its config.json says"),
        (lambda m: edit(m / "config.json", num_hidden_layers=2), "weights are not in it, model.layers.1"),
        (lambda m: edit(m / "config.json", model_type="bert"), "weights are not in it"),
        (lambda m: (m / "config.json").write_text("{"), "config.json"),
        (lambda m: (m / "tokenizer.json").unlink(), "cannot load the tokenizer"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(
    damage: Callable[[Path], None], says: str, model: Path, cli: Callable
) -> None:
    damage(model)
    answer = cli("train", *NO_MODEL, "--model", "model", "-q", "-o", "out")
    assert answer.code == 6 and says in answer.err and answer.err.startswith("error: "), answer.err
    assert not Path("out").exists()


@pytest.mark.parametrize("args", [["export", "run"], ["sft", *TINY, "warm_start.steps=1", "-o"]])
def test_a_model_is_written_to_a_folder_that_takes_it(args: list[str], run: Path, cli: Callable) -> None:
    Path("file").write_text("mine")
    answer = cli(*args, "file/model")
    assert answer.code == 5 and "could not be written: Not a directory" in answer.err and "mend:" in answer.err
    assert Path("file").read_text() == "mine"


def test_a_name_that_the_disk_does_not_take(cli: Callable) -> None:
    answer = cli("train", *TINY, "-q", "-o", "x" * 300)
    assert answer.code == 5 and "too long" in answer.err
