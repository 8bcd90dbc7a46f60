"""Recorded rollouts through the real loop: as good as those just sampled, whoever recorded them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import coterie
from coterie.api import start
from coterie.build import build
from coterie.errors import CoterieError
from coterie.recipe import resolve
from tests.e2e.conftest import TINY, cli  # noqa: F401  (a fixture)

DENSE = [*TINY, "task.dense=true", "steps=1", "checkpoint.every=1"]
MODEL = "model={init: {layers: 1, width: 16, heads: 2, context: 48}}"
PLAIN = [MODEL, "threads=1", "steps=2", "draw.prompts=2", "optimizer.lr=1e-2", "log.rollouts_every=1"]
ROWS = [
    {"prompt": p, "completion": c, "reward": r}
    for p, c, r in [("1+1=", "2", 1.0), ("2+2=", "4", 1.0), ("1+1=", "3", 0.0), ("2+2=", "5", 0.5), ("2+2=", "", 0.0)]
]
PAIRS = [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}, {"prompt": "2+2=", "chosen": "4", "rejected": "22"}]
WITH_LOGP = "opmd"
BREVITY = Path(__file__).parents[1] / "e2e/rewards.py"
GAPS = ["rollout.strategy=serial_exit", "rollout.strategy.cue='>'", "rollout.max_tokens=8",
        f"rewards.functions=[{BREVITY}:brevity]"]  # fmt: skip
"""A strategy that puts tokens of its own between the decisions."""


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{step:06d}/policy/model.safetensors")


def moved(run: Path, last: int) -> bool:
    before, after = weights(run, 0), weights(run, last)
    return any(not torch.equal(before[n], after[n]) for n in before)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def offline(path: Any, *more: str, method: str = WITH_LOGP) -> Any:
    return resolve(method=method, overrides=[*PLAIN, *more], values={"offline.rollouts": str(path)})


def last(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("method", ["grpo+kl+overlong-filtering", "opmd", "topr", "ppo-clip+unlikeliness", "dr-grpo"])
def test_a_recorded_step_is_the_step_that_was_taken(tmp_path: Path, method: str) -> None:
    """The same weights, from the same rollouts: shaped, filtered and credited anew, not generated and not graded."""
    more = GAPS if method == "dr-grpo" else []
    online = start(resolve(method=method, overrides=[*DENSE, *more]), tmp_path / "online", quiet=True).path
    model = f"model={online}/checkpoints/step-000000/policy"
    settings = [a for a in DENSE if not a.startswith(("model=", "task"))] + [model]
    recipe = resolve(method=method, overrides=settings, values={"offline.rollouts": str(online)})
    again = start(recipe, tmp_path / "offline", quiet=True).path
    want, got = weights(online, 1), weights(again, 1)
    assert moved(online, 1) and ("ids" in pq.read_schema(online / "rollouts/step-000001.parquet").names) == bool(more)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=2e-5)
    for metric in ("reward/mean", "grad/norm", "entropy/mean", "advantage/abs_mean", "mismatch/mean_abs"):
        assert last(again)[metric] == pytest.approx(last(online)[metric], rel=1e-3, abs=1e-6), metric


def test_everything_a_table_has_comes_back(tmp_path: Path) -> None:
    """Turns, forks and scores of steps, in groups drawn in another order."""
    overrides = [*DENSE, "rollout.strategy.branching=[2,2,2]", "rollout.group_size=8"]
    run = start(resolve(method="spo-tree", overrides=overrides), tmp_path / "run", quiet=True)
    recorded = build(offline(run.path, f"model={run.path}/checkpoints/step-000001/policy")).recorded
    assert recorded is not None
    table, lacking = recorded.batch(run.policy, [2, 0], recorded.sampling or pytest.fail("no sampling"))
    assert not lacking.any() and {"turn", "parent", "branch", "version", "state_key"} <= set(table.columns)
    rows = [*recorded.rows(2), *recorded.rows(0)]
    assert len(table) == len(rows) and len(recorded) > 2
    for i, row in enumerate(rows):
        decided = table["mask"][i]
        for name in ("tokens", "logp_old", "turn", "version"):
            assert table[name][i][decided].tolist() == row[name], name
        parent = int(table["parent"][i])
        assert rows[parent]["__row"] == row["parent"] and table["groups"][parent] == table["groups"][i]
        assert table.texts[i] == row["completion"]
    assert (table["parent"] != torch.arange(len(rows))).any()
    assert table.sampling == recorded.sampling and recorded.sampling.max_tokens == 4


def test_foreign_data_is_tokenised_and_scored_by_the_starting_policy(tmp_path: Path) -> None:
    run = build(offline(write(tmp_path / "my.jsonl", ROWS)))
    assert run.recorded is not None and [len(m) for m in run.recorded.members] == [2, 3]
    assert any("starting policy" in note for note in run.notes)
    result = start(offline(tmp_path / "my.jsonl", "steps=3"), tmp_path / "run", quiet=True)
    first, *_, final = result.metrics[1:]
    assert first["mismatch/max_abs"] == 0.0  # it starts on what it is measured against
    assert final["mismatch/max_abs"] > 0.0
    assert first["reward/mean"] == pytest.approx(0.5) and first["reward/reward"] == pytest.approx(0.5)
    assert moved(result.path, 3)


@pytest.mark.parametrize("method", ["opmd", "opmd+kl"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, method: str) -> None:
    """Also where the log-probs of the starting policy are needed after the policy has moved."""
    data = write(tmp_path / "my.jsonl", ROWS)
    whole = start(offline(data, "steps=4", method=method), tmp_path / "whole", quiet=True).path
    moves = ["reference.update=ema"] if method == "opmd+kl" else []
    part = start(offline(data, "steps=2", *moves, method=method), tmp_path / "part", quiet=True).path
    coterie.resume(part, quiet=True, steps=4)
    other = start(offline(data, "steps=4", *moves, method=method), tmp_path / "other", quiet=True).path
    assert all(torch.equal(v, weights(other, 4)[n]) for n, v in weights(part, 4).items())
    same = all(torch.equal(v, weights(other, 4)[n]) for n, v in weights(whole, 4).items())
    assert same == (method != "opmd+kl")


def test_the_data_may_not_change_under_a_run(tmp_path: Path) -> None:
    data = write(tmp_path / "my.jsonl", ROWS)
    run = start(offline(data), tmp_path / "run", quiet=True).path
    write(data, [*ROWS, ROWS[0]])
    with pytest.raises(CoterieError, match="began with 5 recorded rollouts, and now there are 6"):
        coterie.resume(run, quiet=True, steps=4)


def test_folders_globs_and_several_files_are_one_table(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([r | {"group": 0, "rank": 1} for r in ROWS[:2]]), tmp_path / "b.parquet")
    write(tmp_path / "a.jsonl", [{"group": 0, **r} for r in ROWS])
    (tmp_path / "notes.txt").write_text("not data")
    sizes = {}
    for name in (str(tmp_path), str(tmp_path / "*.*l*"), str(tmp_path / "b.parquet")):
        run = build(offline(name))
        assert run.recorded is not None
        sizes[name] = [len(m) for m in run.recorded.members]
    assert list(sizes.values()) == [[5, 2], [5], [2]] or list(sizes.values()) == [[5, 2], [5, 2], [2]]


def test_components_are_weighed_anew(tmp_path: Path) -> None:
    rows = [r | {"reward.exact": r["reward"], "reward.brief": -1.0} for r in ROWS]
    data = write(tmp_path / "my.jsonl", rows)
    plain = build(offline(data)).recorded
    again = build(offline(data, "rewards.weights.brief=0.25")).recorded
    assert plain is not None and again is not None
    policy = build(offline(data)).policy
    sampling = coterie.rollouts.Sampling()
    assert plain.batch(policy, [0], sampling)[0]["rewards"].tolist() == [1.0, 0.0]
    assert again.batch(policy, [0], sampling)[0]["rewards"].tolist() == [0.75, -0.25]
    with pytest.raises(CoterieError, match="'breif', which was not recorded"):
        build(offline(data, "rewards.weights.breif=1"))


def test_it_is_evaluated_on_a_task(tmp_path: Path, cli: Callable) -> None:  # noqa: F811
    rows = [{"prompt": "10>", "completion": c, "reward": c == "01"} for c in ("01", "10")]
    write(tmp_path / "my.jsonl", rows)
    common = [a for a in TINY if not a.startswith("task=")]
    task = ["--task", "sort", "task.digits=2", "task.held_out=8", "task.train=8"]
    answer = cli("train", *common, "--rollouts", "my.jsonl", *task, "--method", "ppo-clip", "-q", "-o", "run")
    assert answer.code == 0, answer.err
    assert "eval/accuracy" in last(tmp_path / "run")
    assert cli("resume", "run", "steps=3", "-q").code == 0
    assert json.loads(cli("plan", *common, "--rollouts", "my.jsonl", "--json").out)["derived"]["recorded groups"] == 1
    Path("my.jsonl").unlink()  # a finished run needs its data no more
    assert json.loads(cli("eval", "run", "--json").out)["eval/accuracy"] >= 0.0
    assert cli("export", "run", "model").code == 0


WRONG: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no reward": ([{"prompt": "1", "completion": "2"}], "no column 'reward'"),
    "a reward misspelt": ([{"prompt": "1", "completion": "2", "rewrd": 1}], "did you mean 'rewrd'"),
    "no prompt": ([{"completion": "2", "reward": 1}], "no column 'prompt'"),
    "no completion": ([{"prompt": "2", "reward": 1}], "no column 'completion'"),
    "a reward missing": ([ROWS[0], {**ROWS[1], "reward": None}], "row 2 has nothing in column 'reward'"),
    "a reward in words": ([{**ROWS[0], "reward": "good"}], "'reward' is string, not a number"),
    "columns of two types": ([ROWS[0], {**ROWS[1], "completion": 3}], "not of one type"),
    "log-probs without tokens": ([{**ROWS[0], "logp_old": [-1.0]}], "no tokens that they belong to"),
    "too few log-probs": ([{**ROWS[0], "tokens": [5, 1], "logp_old": [-1.0]}], "row 1 has another number of values"),
    "tokens of another model": ([{**ROWS[0], "tokens": [5, 100000]}] * 2, "there is a token 100000"),
    "tokens that read otherwise": ([{**ROWS[0], "completion": "9", "tokens": [5, 6]}] * 2, "tokens of row 1 read"),
    "half a pair": ([{**PAIRS[0], "rejected": None}, PAIRS[1]], "row 1 has nothing in column 'rejected'"),
    "nothing": ([], "there are no rows in it"),
    "a whole conversation": (
        [{**ROWS[0], "completion": [{"role": "user", "content": "1"}]}] * 2,
        "one message of the ass",
    ),
    "too long": ([{**ROWS[0], "completion": "1" * 50}] * 2, "exceeds the model's context of 48"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_data_is_said(tmp_path: Path, case: str) -> None:
    rows, message = WRONG[case]
    data = write(tmp_path / "my.jsonl", rows)
    with pytest.raises(CoterieError, match=message):
        start(offline(data), tmp_path / "run", quiet=True)


def test_recordings_of_another_tokenizer_or_sampling_are_refused(tmp_path: Path) -> None:
    one = start(resolve(overrides=DENSE), tmp_path / "one", quiet=True).path
    with pytest.raises(CoterieError, match="recorded with another tokenizer"):
        build(offline(one))
    two = start(resolve(overrides=[*DENSE, "rollout.temperature=0.7"]), tmp_path / "two", quiet=True).path
    recipe = resolve(values={"offline.rollouts": [str(one), str(two)]}, overrides=PLAIN)
    with pytest.raises(CoterieError, match="differ in how they were sampled"):
        build(recipe)


@pytest.mark.parametrize(
    "more,message",
    [
        (["rollout.strategy=segment_probes"], "the rollouts are recorded"),
        (["rewards.functions=[exact]"], "not graded again"),
        (["credit.baseline=segment_value"], "which the recorded rollouts do not have"),
        (["offline.revise='?'"], "for preference pairs"),
    ],
)
def test_recipes_that_cannot_act_on_recordings_are_refused(tmp_path: Path, more: list[str], message: str) -> None:
    data = write(tmp_path / "my.jsonl", ROWS)
    with pytest.raises(CoterieError, match=message):
        build(offline(data, *more))


def test_no_such_data(tmp_path: Path) -> None:
    for name, message in {
        tmp_path / "no.parquet": "no such file", tmp_path / "*.parquet": "no file is named like",
        tmp_path: "no recorded rollouts in this folder",
    }.items():  # fmt: skip
        with pytest.raises(CoterieError, match=message):
            build(offline(name))


def test_from_python(tmp_path: Path) -> None:
    data = write(tmp_path / "my.jsonl", ROWS)
    init = {"init": {"layers": 1, "width": 16, "heads": 2}}
    result = coterie.train(
        model=init, rollouts=data, method="ppo-clip", steps=1, threads=1, out=tmp_path / "run", quiet=True
    )
    assert result.last["step"] == 1 and moved(result.path, 1)
