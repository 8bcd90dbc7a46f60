"""GSM8K: what counts as the answer, where the data may lie, and the whole data set where it is at hand."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from coterie.errors import DataError, RecipeError
from coterie.tasks import gsm8k
from coterie.tasks.base import validate
from coterie.tasks.gsm8k import final_answer, verify

DATA = Path(__file__).resolve().parents[3] / "shared/data/gsm8k"


def problem(i: int) -> dict[str, str]:
    return {"question": f"What is {i} and 1?", "answer": f"It is {i} + 1 = <<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1:,}"}


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "train.jsonl", [problem(i) for i in range(995, 1015)])
    write(tmp_path / "test.jsonl", [problem(i) for i in range(1010, 1020)])
    return tmp_path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so\n#### 72", "72"), ("#### $1,200.50 per month.", "1200.5"), ("#### 50%", "50"), ("#### -7.", "-7"),
        ("#### 3\nno:\n#### 4", "4"), ("#### 5 apples and 3 pears", "5"), (r"#### \boxed{9}", "9"), ("####12", "12"),
        (r"2 and \boxed{12 \text{ apples}} of 30", "12"), (r"\boxed{\$1,000}", "1000"), (r"\boxed{x = 5}", "5"),
        ("First 3, then 4.", "4"), ("It costs $18.", "18"), ("That is 20-25", "25"), ("#### 0", "0"),
    ],
)  # fmt: skip
def test_the_final_answer_in_the_documented_order(text, value):
    assert final_answer(text) == Fraction(value)


def test_no_number_is_no_answer():
    assert final_answer("7 came up\n#### none") is None and final_answer("I do not know") is None
    assert not verify("I do not know", {"answer": "1"}) and verify("1000.0", {"answer": "1,000"})
    assert not verify("999.9999999999999", {"answer": "1000"})


def test_a_folder_of_train_and_test(folder):
    task = gsm8k(source=str(folder))
    assert len(task.held_out) == 10 and len(task.train) == 15
    assert task.notes == ["5 training rows were held out too and left out"]
    row = task.train[4]
    assert row["answer"] == "1,000" and "<<" not in row["solution"] and row["prompt"].startswith("What is 999 and 1?\n")
    assert task.verdict == task.rewards[0].name and validate(task).ok
    small = gsm8k(source=str(folder), limit=3, held_out=2, chat=True, prompt=r"{question} Put it in \boxed{}.")
    assert (len(small.train), len(small.held_out)) == (3, 2)
    assert small.train[0]["prompt"] == [{"role": "user", "content": r"What is 995 and 1? Put it in \boxed{}."}]


def test_one_file_is_split(folder):
    task = gsm8k(source=str(folder / "train.jsonl"), held_out=4)
    assert (len(task.train), len(task.held_out)) == (16, 4)
    assert not {r["prompt"] for r in task.train} & {r["prompt"] for r in task.held_out}
    assert len(gsm8k(source=str(folder / "train.jsonl")).held_out) == 2


def test_what_is_wrong_is_named(folder):
    write(folder / "train.jsonl", [problem(1), {"question": "?", "answr": "#### 1"}])
    with pytest.raises(DataError, match=r"row 2 has no 'answer'(.|\n)*did you mean 'answr'"):
        gsm8k(source=str(folder))
    write(folder / "train.jsonl", [{"question": "?", "answer": "one"}])
    with pytest.raises(DataError, match="row 1: no number after '####'"):
        gsm8k(source=str(folder))
    write(folder / "train.jsonl", [problem(1), problem(2)])
    assert gsm8k(source=str(folder), held_out=0).held_out == []
    with pytest.raises(RecipeError, match="held_out is a number of rows, at least 0, got -3"):
        gsm8k(source=str(folder), held_out=-3)
    with pytest.raises(RecipeError, match="limit is a number of rows, at least 1, got 0"):
        gsm8k(source=str(folder), limit=0)
    with pytest.raises(RecipeError, match=r"no \{question\} in it"):
        gsm8k(source=str(folder), prompt="{problem}")


@pytest.mark.skipif(not DATA.is_dir(), reason="the GSM8K files are not beside this checkout")
def test_every_reference_of_gsm8k_is_accepted_and_its_corruption_rejected():
    task = gsm8k(source=str(DATA))
    report = validate(task)
    assert (len(task.train), len(task.held_out)) == (7473, 1319)
    assert report.ok and report.rows == report.corrupted == 8792, report
