"""Data and rewards as people have them, through the command line: every format trains, every grader's fate shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY

MATH = Path(__file__).parents[3] / "shared/data/math"
BASE = [a for a in TINY if not a.startswith("task=")]
ROWS = [{"prompt": f"{i}+1=", "answer": str(i + 1), "level": i % 3} for i in range(12)]
TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}a:"
REWARDS = """
import asyncio, os, time

async def waits(completions, answer, **columns):
    await asyncio.sleep(0)
    return [0.5 + float(a in c) for a, c in zip(answer, completions)]

def brevity(completions):
    return [-float(len(c)) for c in completions]

def hangs(completions, level, **columns):
    if 1 in level:
        time.sleep(60)
    return [1.0 for c in completions]

def dies_on_level_1(completions, level, **columns):
    if 1 in level:
        os._exit(3)
    return [1.0 for c in completions]

def raises_on_level_1(completions, level, **columns):
    if 1 in level:
        raise ValueError("one")
    return [1.0 for c in completions]

def messages(prompts, completions, **columns):
    assert all(p[-1]["role"] == "user" for p in prompts)
    return [float(len(c[0]["content"])) if c[0]["role"] == "assistant" else None for c in completions]
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    return tmp_path


def trained(cli: Callable, folder: Path, *args: str) -> dict:
    answer = cli("train", *BASE, *args, "-q", "-o", "run")
    assert answer.code == 0, answer.err
    last = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2
    return last


def test_components_and_weights_of_several_functions(cli: Callable, files: Path) -> None:
    last = trained(
        cli, files, "--task", "my.jsonl", "task.verifier=numeric", "--reward", "rewards.py:waits",
        "--reward", "rewards.py:brevity", "rewards.weights={brevity: 0.1}",
    )  # fmt: skip
    assert last["reward/mean"] == pytest.approx(last["reward/waits"] + 0.1 * last["reward/brevity"], abs=1e-5)
    assert last["accuracy"] == last["eval/accuracy"] == 0.0 or 0 <= last["accuracy"] <= 1


def test_a_run_with_files_of_its_own_is_resumed_from_anywhere(
    cli: Callable, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "mine.yaml").write_text(
        "title: Mine\nsummary: s\nrecipe: {credit: {baseline: {group_norm: {scale: none}}}}"
    )
    trained(cli, files, "--task", "my.jsonl", "--reward", "rewards.py:brevity", "--method", "mine.yaml+kl")
    monkeypatch.chdir("/")
    answer = cli("resume", str(files / "run"), "steps=3", "-q")
    assert answer.code == 0, answer.err
    assert "mine.yaml+kl on jsonl" in (files / "run/report.html").read_text()


@pytest.mark.parametrize(
    ("function", "on_error", "metric"),
    [
        ("hangs", "none", "reward/timeouts"), ("dies_on_level_1", "zero", "reward/errors"),
        ("raises_on_level_1", "none", "reward/errors"),
    ],
)  # fmt: skip
def test_graders_that_fail_are_counted_and_the_run_goes_on(
    function: str, on_error: str, metric: str, cli: Callable, files: Path
) -> None:
    timeout = 0.5 if function == "hangs" else 60
    (files / "easy.jsonl").write_text(
        "".join(json.dumps(r | {"level": int(i == 7)}) + "\n" for i, r in enumerate(ROWS))
    )
    last = trained(
        cli, files, "--task", "easy.jsonl", "task.held_out=0", "draw.prompts=12", "--reward",
        f"rewards.py:{function}", f"rewards.timeout={timeout}", f"rewards.on_error={on_error}",
        *(["rollout.group_size=2"] if function != "hangs" else ["rollout.group_size=2", "rewards.on_error=zero"]),
    )  # fmt: skip
    whole_batch = function == "hangs"  # one clock a call: nobody knows who of the batch it was
    assert last[metric] == (24 if whole_batch else 2)
    assert last["reward/mean"] == pytest.approx(0.0 if whole_batch else 1.0 if on_error == "none" else 22 / 24)


def test_verls_parquet_with_conversations(cli: Callable, files: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [
        {"data_source": "mine", "prompt": [{"role": "user", "content": r["prompt"]}],
         "reward_model": {"style": "rule", "ground_truth": r["answer"]}, "extra_info": {"index": i}}
        for i, r in enumerate(ROWS)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), files / "verl.parquet")
    chat = [
        "--task",
        "verl.parquet",
        "task.verifier=numeric",
        "model.chat_template=chat.jinja",
        "model.init.context=64",
    ]
    last = trained(cli, files, *chat, "--reward", "rewards.py:messages")
    assert last["reward/messages"] == pytest.approx(last["reward/mean"]) and "accuracy" in last


def test_a_saved_dataset(cli: Callable, files: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(files / "saved"))
    assert "eval/accuracy" in trained(cli, files, "--task", "./saved", "task.verifier=exact")


@pytest.mark.skipif(not MATH.is_dir(), reason=f"the mathematics files are not at {MATH}")
def test_mathematics(cli: Callable, files: Path) -> None:
    last = trained(
        cli, files, "--task", str(MATH / "amc23.jsonl"), "task.prompt=problem", "task.verifier=math_verify",
        "model.init.context=2000", "evaluation.prompts=2", "evaluation.greedy=false",
    )  # fmt: skip
    assert last["reward/math_verify"] == last["reward/mean"] and last["reward/timeouts"] == 0
