from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from coterie.errors import RunError
from coterie.observe.metrics import MetricsLog


def log_of(path, steps):
    log = MetricsLog(path / "metrics.jsonl")
    for step in steps:
        log.append({"step": step, "reward/mean": step / 3})
    return log


def test_rows_come_back_exactly(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.read() == []
    log.append({"step": 0, "a": 0.1 + 0.2, "b": float("nan"), "c": float("-inf"), "d": torch.tensor(0.5), "e": None})
    log.append({"step": 1, "f": 3, "name": "x"})
    assert log.read() == [
        {"step": 0, "a": 0.1 + 0.2, "b": None, "c": None, "d": 0.5, "e": None, "metrics/nonfinite": 2},
        {"step": 1, "f": 3, "name": "x"},
    ]


def test_each_row_is_on_disk_when_append_returns(tmp_path):
    log = log_of(tmp_path, [0])
    assert json.loads(log.path.read_text())["step"] == 0


@pytest.mark.parametrize("torn", ['{"step": 3, "rew', '{"step": 3, "reward/mean": 1.0}', '{"step": 3, "x": "\\u00'])
def test_a_line_without_its_newline_does_not_count(tmp_path, torn):
    log = log_of(tmp_path, range(3))
    with log.path.open("a") as file:
        file.write(torn)
    assert [r["step"] for r in log.read()] == [0, 1, 2]
    log.truncate_after(5)
    log.append({"step": 3, "reward/mean": 1})
    assert [r["step"] for r in log.read()] == [0, 1, 2, 3]


def test_truncate_drops_later_steps_and_keeps_the_rest_byte_for_byte(tmp_path):
    log = log_of(tmp_path, range(3))
    before = log.path.read_bytes()
    for step in (3, 4):
        log.append({"step": step})
    log.truncate_after(2)
    assert log.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    log.truncate_after(-1)
    assert log.read() == []


def test_truncating_what_is_not_there_does_nothing(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl").truncate_after(3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"reward": 1}', '{"step": "two"}', ""])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    log = log_of(tmp_path, [0])
    with log.path.open("a") as file:
        file.write(line + "\n")
    log.append({"step": 2})
    with pytest.raises(RunError, match="line 2"):
        log.read()


FULL = """
import resource, sys
from coterie.errors import RunError
from coterie.observe.metrics import MetricsLog
log = MetricsLog(sys.argv[1])
log.append({"step": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
try:
    log.append({"step": 1, "text": "x" * 100})
except RunError as error:
    print(error)
    print([r["step"] for r in log.read()])
"""


def test_a_full_disk_is_said_and_loses_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert "could not be written: File too large" in done.stdout
    assert done.stdout.endswith("[0]\n")
