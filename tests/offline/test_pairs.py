"""Preference pairs in the formats people have them, and the loops that learn from them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
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
from coterie.offline.pairs import parts
from coterie.recipe import resolve
from coterie.rollouts import Sampling
from coterie.run import Run
from tests.e2e.conftest import TINY

MODEL = "model={init: {layers: 1, width: 16, heads: 2, context: 64}}"
PLAIN = [MODEL, "threads=1", "steps=3", "draw.prompts=2", "optimizer.lr=1e-2", "log.rollouts_every=1"]
PAIRS = [{"prompt": "1+1=", "chosen": "2", "rejected": "33"}, {"prompt": "2+2=", "chosen": "4", "rejected": "22"}]
USER = [{"role": "user", "content": "1+1="}]
TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}a:"


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def offline(path: Any, *more: str, method: str = "dpo") -> Any:
    return resolve(method=method, overrides=[*PLAIN, *more], values={"offline.rollouts": str(path)})


def drawn(run: Run, groups: Sequence[int] = (0,)) -> Any:
    assert run.recorded is not None
    return run.recorded.batch(run.policy, groups, Sampling())[0]


def moved(run: Path, last: int) -> bool:
    a, b = (load_file(run / f"checkpoints/step-{n:06d}/policy/model.safetensors") for n in (0, last))
    return any(not torch.equal(a[n], b[n]) for n in a)


def test_a_pair_is_a_group_of_two(tmp_path: Path) -> None:
    run = build(offline(write(tmp_path / "pairs.jsonl", PAIRS)))
    table = drawn(run, [1, 0])
    assert table["groups"].tolist() == [0, 0, 1, 1] and table["rewards"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert table.texts == ["4", "22", "2", "33"] and [p.index for p in table.prompts] == [1, 0]
    assert table["lengths"].tolist() == [2, 3, 2, 3]  # each ends with EOS
    assert run.reward_weights == {"preference": 1.0}
    assert run.notes == []  # nothing reads logp_old, so nothing is said of it


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": USER, "chosen": said("2"), "rejected": said("33")},
        {"chosen": [*USER, *said("2")], "rejected": [*USER, *said("33")]},
        {"prompt": USER, "chosen": "2", "rejected": "33"},
    ],
    ids=["conversation", "implicit prompt", "mixed"],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_conversations(tmp_path: Path, row: dict[str, Any], suffix: str) -> None:
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    data = tmp_path / f"pairs.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist([row, row]), data)
    else:
        write(data, [row, row])
    run = build(offline(data, f"model.chat_template={tmp_path / 'chat.jinja'}", "model.init.vocabulary='u:1+=;a234'"))
    table = drawn(run)
    assert table.texts == ["2", "33"] and run.policy.decode(table.prompts[0].tokens) == "u:1+1=;a:"
    assert table["rewards"].tolist() == [1.0, 0.0]


def test_prompts_that_are_not_written() -> None:
    assert parts({"chosen": "Q: 1 yes", "rejected": "Q: 1 no"}) == ("Q: 1", " yes", " no")
    assert parts({"chosen": "ab", "rejected": "ac", "prompt": "x"}) == ("x", "ab", "ac")
    for wrong in (
        {"chosen": "yes", "rejected": "no"},
        {"chosen": "a", "rejected": "a"},
        {"chosen": "ab", "rejected": "a"},
    ):
        with pytest.raises(CoterieError):
            parts(wrong)


def test_scores_of_pairs_are_components(tmp_path: Path) -> None:
    rows = [p | {"score_chosen": 3.5, "score_rejected": 4.0, "note_chosen": 1} for p in PAIRS]
    data = write(tmp_path / "pairs.jsonl", rows)
    run = build(offline(data, "rewards.weights.score=0.5", method="modpo"))
    table = drawn(run)
    assert table.columns["components"]["score"].tolist() == [3.5, 4.0] and "note" not in table.columns["components"]
    assert run.reward_weights == {"preference": 1.0, "score": 0.5}
    result = start(
        offline(data, "rewards.weights={preference: 0.5, score: 0.5}", method="modpo"), tmp_path / "run", quiet=True
    )
    assert result.metrics[1]["modpo/other_margin"] == pytest.approx(-0.25)
    assert result.metrics[1]["preference/margin"] == pytest.approx(0.5)


def test_revisions_are_rows_whose_beginning_is_no_decision(tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", PAIRS)
    run = build(offline(data, "offline.revise='='", method="srpo-robust"))
    table = drawn(run)
    assert table["rewards"].tolist() == [1.0, 0.0] * 3
    assert table.columns["components"]["revises"].tolist() == [0.0, 0.0, 1.0, 1.0, -1.0, -1.0]
    full = [run.policy.decode(t.tolist()) for t in table["tokens"]]
    assert [text[:4] for text in full[2:]] == ["2=2", "2=33", "33=2", "33=3"]
    chosen = [run.policy.decode(t[m].tolist()) for t, m in zip(table["tokens"], table["mask"], strict=True)]
    assert chosen == ["2", "33"] * 3
    again = start(offline(data, "offline.revise='='", method="srpo-robust"), tmp_path / "run", quiet=True)
    assert again.metrics[1]["loss/total"] == pytest.approx(0.25) and moved(again.path, 3)
    with pytest.raises(CoterieError, match="reads the reward component 'revises'"):
        start(offline(data, method="srpo-robust"), tmp_path / "plain", quiet=True)


METHODS = ["dpo", "ln-dpo", "internvl35-cascade", "gdpo-sr", "apo-accelerated", "veripo", "gepo-oorl"]


@pytest.mark.parametrize("method", METHODS)
def test_they_learn_the_preference(tmp_path: Path, method: str) -> None:
    data = write(tmp_path / "pairs.jsonl", PAIRS)
    more = {"apo-accelerated": ["reference.every=3"], "gepo-oorl": ["objective.terms.preference.coef=1"]}
    result = start(offline(data, "steps=8", *more.get(method, []), method=method), tmp_path / "run", quiet=True)
    margins = [row["preference/margin"] for row in result.metrics[1:]]
    assert margins[0] == pytest.approx(0.0, abs=1e-6) and max(margins) > 0.01
    if method == "dpo":
        assert result.metrics[1]["loss/total"] == pytest.approx(math.log(2))
        assert result.last["preference/accuracy"] == 1.0 and result.last["mismatch/max_abs"] > 0
    if method == "apo-accelerated":  # the reference has gone past the policy
        assert margins[3] < 0 < margins[2]


def test_a_stopped_run_goes_on_with_its_momentum_and_its_mean(tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", PAIRS)
    more = ["reference={update: periodic, every: 2, momentum: 0.3}"]

    def run(name: str, steps: int) -> Path:
        recipe = offline(data, f"steps={steps}", *more, method="internvl35-cascade")
        return start(recipe, tmp_path / name, quiet=True).path

    whole, part = run("whole", 5), run("part", 3)
    coterie.resume(part, quiet=True, steps=5)
    a, b = (load_file(p / "checkpoints/step-000005/policy/model.safetensors") for p in (whole, part))
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_momentum_is_for_copies() -> None:
    with pytest.raises(CoterieError, match=r"momentum is for reference\.update=periodic"):
        resolve(overrides=["task=sort", "reference.momentum=0.3"])


def test_a_warm_start_is_on_the_preferred_answers(tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", PAIRS)
    more = ["warm_start.steps=60", "warm_start.lr=3e-2", "warm_start.batch=4"]
    result = start(offline(data, *more), tmp_path / "run", quiet=True)
    assert result.metrics[0]["warm_start/loss"] < 0.5
    assert result.metrics[1]["preference/margin"] == pytest.approx(0.0, abs=1e-6)  # the reference comes after it


@pytest.mark.parametrize("first,then", [("veripo", "grpo"), ("internvl35-cascade", "gspo")])
def test_online_and_offline_in_turn(tmp_path: Path, first: str, then: str) -> None:
    """Record; learn from what was recorded, weighed otherwise; go on online from there."""
    folder = Path(__file__).parents[1] / "e2e"
    functions = (
        f"rewards.functions=[{{fn: {folder}/rewards.py:brevity}}, {{fn: {folder}/rewards.py:positions, weight: 0}}]"
    )
    one = start(resolve(method="grpo", overrides=[*TINY, functions]), tmp_path / "one", quiet=True).path
    policy = "model={}/checkpoints/step-000002/policy".format
    settings = ["threads=1", "steps=2", "draw.prompts=4", "optimizer.lr=1e-3"]
    recipe = resolve(
        method=first, values={"offline.rollouts": str(one)},
        overrides=[*settings, policy(one), "rewards.weights={brevity: 0, positions: 1}"],
    )  # fmt: skip
    two = start(recipe, tmp_path / "two", quiet=True)
    assert two.last["reward/mean"] == pytest.approx(two.last["reward/positions"])
    assert "preference/margin" in two.last or two.last["groups/dropped"] > 0
    online = [a for a in TINY if not a.startswith("model=")]
    three = start(resolve(method=then, overrides=[*online, policy(two.path)]), tmp_path / "three", quiet=True)
    assert three.last["step"] == 2
