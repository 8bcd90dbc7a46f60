"""Methods compared seed by seed: the statistics by scipy, and the command on real runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy import stats

from coterie import compare
from coterie.api import Result
from coterie.errors import RecipeError
from tests.e2e.conftest import TINY


@pytest.mark.parametrize("degrees", [1, 2, 3, 9, 10, 11, 30, 1000])
def test_quantiles_are_students(degrees: int) -> None:
    assert compare.quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-3)


def test_the_interval_is_that_of_a_paired_test() -> None:
    ours, theirs = [0.9, 0.7, 0.8, 0.75], [0.5, 0.6, 0.55, 0.6]
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    mean, low, high = compare.difference(ours, theirs)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=2e-4)
    assert mean == pytest.approx(0.225)
    assert compare.difference([1.0], [0.0])[1:] == (-float("inf"), float("inf"))


def result(values: list[float], metric: str) -> Result:
    return Result(Path("x"), [{"step": i, metric: v} for i, v in enumerate(values)], False, None)


def test_the_end_is_the_last_evaluation_or_the_last_tenth_and_the_start_is_not_counted() -> None:
    evaluated = {("a", 0): result([0.0, 0.4, 0.8], "eval/accuracy"), ("b", 0): result([0.0, 0.2, 0.4], "eval/accuracy")}
    metric, (a, b) = compare.measure(evaluated)
    assert metric == "eval/accuracy" and a.end == (0.8,) and b.end == (0.4,) and b.over == pytest.approx((0.3,))
    graded = {(m, 0): result([9.0, *map(float, range(20))], "reward/mean") for m in "ab"}
    metric, (a, _) = compare.measure(graded)
    assert metric == "reward/mean" and a.end == (18.5,) and a.over == (9.5,)
    with pytest.raises(RecipeError, match=r"(?s)no run has the metric 'reward/men'.*'reward/mean'"):
        compare.measure(graded, "reward/men")


def test_two_methods_on_two_seeds(cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "title: Mine\nsummary: s\nrecipe: {credit: {baseline: {group_norm: {scale: none}}}}"
    )
    args = ["compare", *TINY, "--methods", "grpo,mine.yaml", "--seeds", "2", "-o", "both", "--json"]
    first = cli(*args)
    assert first.code == 0, first.err
    found = json.loads(first.out)
    assert found == json.loads((tmp_path / "both/comparison.json").read_text())
    assert [m["method"] for m in found["methods"]] == ["grpo", "mine.yaml"] and found["seeds"] == [0, 1]
    ours, theirs = found["methods"][1]["end"], found["methods"][0]["end"]
    assert ours["difference"] == pytest.approx(ours["mean"] - theirs["mean"])
    assert (tmp_path / "both/comparison.png").read_bytes().startswith(b"\x89PNG")
    files = [tmp_path / f"both/{m}/seed-1/metrics.jsonl" for m in ("grpo", "mine.yaml")]
    rows = [json.loads(file.read_text().splitlines()[0]) for file in files]
    assert rows[0]["eval/accuracy"] == rows[1]["eval/accuracy"], "the same seed starts from the same model"

    written = (tmp_path / "both/grpo/seed-0/metrics.jsonl").stat().st_mtime_ns
    again = cli(*args[:-1])
    assert again.code == 0 and "against grpo" in again.out
    assert (tmp_path / "both/grpo/seed-0/metrics.jsonl").stat().st_mtime_ns == written, "nothing was run again"

    stopped = tmp_path / "both/mine.yaml/seed-0"
    shutil.rmtree(stopped / "checkpoints/step-000002")
    (stopped / "status.json").write_text((stopped / "status.json").read_text().replace("finished", "interrupted"))
    onwards = cli(*args)
    assert onwards.code == 0, onwards.err
    assert json.loads(onwards.out) == found, "it goes on as if it had not been stopped"

    other = cli(*args, "optimizer.lr=1e-2")
    assert other.code == 5 and "another recipe" in other.err and "--out" in other.err


def test_ctrl_c_stops_the_comparison(cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Result(Path("x"), [], True, None)
    monkeypatch.setattr("coterie.compare.start", lambda recipe, path, quiet: ended)
    answer = cli("compare", *TINY, "--methods", "grpo,rloo", "-q")
    assert answer.code == 130 and "the same command goes on" in answer.out


@pytest.mark.parametrize(
    ("methods", "says"),
    [("grpo", "nothing to be compared with"), ("", "nothing to be compared"), ("grpo,grpo", "named twice"),
     ("grpo,dappo", "'dapo'")],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(methods: str, says: str, cli: Callable) -> None:
    answer = cli("compare", *TINY, "--methods", methods, "-o", "both")
    assert answer.code == 2 and says in answer.err and not Path("both").exists()
