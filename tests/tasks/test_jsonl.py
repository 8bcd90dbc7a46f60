"""Your own data: formats, splits, verifiers, and errors that name file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coterie import registry
from coterie.errors import DataError, RecipeError
from coterie.tasks import jsonl
from coterie.tasks.base import Task, validate

MATH = Path(__file__).resolve().parents[3] / "shared/data/math"
ROWS = [{"prompt": f"{i} + 1 =", "answer": str(i + 1), "level": i % 3} for i in range(20)]


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def as_jsonl(folder):
    return write(folder / "d.jsonl", ROWS)


def as_json(folder):
    (folder / "d.json").write_text(json.dumps(ROWS))
    return str(folder / "d.json")


def as_csv(folder):
    lines = ["prompt,answer,level", *(f"{r['prompt']},{r['answer']},{r['level']}" for r in ROWS)]
    (folder / "d.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    return str(folder / "d.csv")


def as_parquet(folder):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "d.parquet")
    return str(folder / "d.parquet")


def as_saved(folder):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


def as_saved_dict(folder):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


@pytest.mark.parametrize("make", [as_jsonl, as_json, as_csv, as_parquet, as_saved, as_saved_dict])
def test_every_format_gives_the_same_task(make, tmp_path):
    task = jsonl(path=make(tmp_path), verifier="numeric", held_out=0.25)
    assert (len(task.train), len(task.held_out)) == (15, 5)
    found = {(r["prompt"], str(r["answer"]), int(r["level"])) for r in (*task.train, *task.held_out)}
    assert found == {(r["prompt"], r["answer"], r["level"]) for r in ROWS}
    assert task.verdict == task.rewards[0].name == "numeric" and validate(task).ok


def test_conversations_and_verls_columns(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [
        {"data_source": "mine",
         "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{i}?"}],
         "reward_model": {"style": "rule", "ground_truth": str(i)}, "extra_info": {"index": i}}
        for i in range(6)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "verl.parquet")
    task = jsonl(path=str(tmp_path / "verl.parquet"), verifier="exact", held_out=2)
    row = task.train[0]
    assert (
        row["prompt"][0] == {"role": "system", "content": "Be brief."}
        and row["prompt"][1]["content"] == f"{row['answer']}?"
    )
    assert row["extra_info"] == {"index": int(row["answer"])} and row["data_source"] == "mine"
    assert task.verify(row["answer"], row) and not task.verify("no", row) and validate(task).ok


def test_held_out_from_another_file_and_leaks_are_reported(tmp_path):
    other = write(tmp_path / "other.jsonl", ROWS[15:])
    task = jsonl(path=write(tmp_path / "d.jsonl", ROWS), held_out=other, limit=10)
    assert task.held_out == ROWS[15:] and task.train == ROWS[:10]
    assert task.notes == ["5 training rows were held out too and left out"]
    with pytest.raises(DataError, match="no training rows are left"):
        jsonl(path=other, held_out=str(tmp_path / "d.jsonl"))


def test_one_conversation_in_two_formats_is_a_leak(tmp_path):
    def chat(i, **more):
        return {"prompt": [{"role": "user", "content": f"{i}?"} | more], "answer": str(i)}

    turned = [{**r, "prompt": [dict(reversed(m.items())) for m in r["prompt"]]} for r in map(chat, range(4))]
    held = write(tmp_path / "held.jsonl", [*turned, chat(4, name=None)])
    task = jsonl(path=write(tmp_path / "d.jsonl", [chat(i) for i in range(10)]), held_out=held)
    assert [r["answer"] for r in task.train] == list("56789")
    assert task.notes == ["5 training rows were held out too and left out"]


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_that_leaves_nothing_is_refused(tmp_path, limit):
    with pytest.raises(RecipeError, match=f"limit is a number of rows, at least 1, got {limit}"):
        jsonl(path=write(tmp_path / "d.jsonl", ROWS), limit=limit)


def test_splits_are_repeatable_and_may_be_empty(tmp_path):
    path = write(tmp_path / "d.jsonl", ROWS)
    a, b, c = (jsonl(path=path, held_out=5, seed=s) for s in (1, 1, 2))
    assert a.held_out == b.held_out != c.held_out and len(a.held_out) == 5
    assert not {r["prompt"] for r in a.train} & {r["prompt"] for r in a.held_out}
    assert jsonl(path=path, held_out=0).held_out == []
    for bad in (20, -0.5):
        with pytest.raises(RecipeError, match=r"held_out|held out"):
            jsonl(path=path, held_out=bad)


def test_solutions_are_references_only_where_every_row_has_one(tmp_path):
    solved = [{**r, "solution": f"so {r['answer']}"} for r in ROWS]
    task = jsonl(path=write(tmp_path / "a.jsonl", solved), verifier="numeric")
    assert task.reference(task.train[0]) == task.train[0]["solution"] and validate(task).ok
    solved[3]["solution"] = None
    assert jsonl(path=write(tmp_path / "b.jsonl", solved)).reference is None
    assert jsonl(path=write(tmp_path / "c.jsonl", ROWS)).verify is None


@pytest.mark.parametrize(
    ("verifier", "answers"),
    [
        ("choice", ["A", "B", "C"]), ("f1", ["aba", "Denver Broncos", "New York"]), ("exact", ["x+y", "y+x", "x"]),
        ("exact", ["1/2", "50%", "$3"]), ("numeric", ["1,000", "-3", "2.50"]),
        ({"regex": {"pattern": r"(\w+)"}}, ["a", "b"]),
    ],
)  # fmt: skip
def test_corrupted_answers_are_wrong_for_every_verifier(tmp_path, verifier, answers):
    rows = [{"prompt": f"q{i}", "answer": answers[i % len(answers)]} for i in range(12)]
    task = jsonl(path=write(tmp_path / "d.jsonl", rows), verifier=verifier)
    report = validate(task)
    assert report.ok and report.corrupted == 12, report


def test_answers_that_are_patterns_are_no_references(tmp_path):
    rows = [{"prompt": f"q{i}", "answer": rf"^{i}\d$"} for i in range(5)]
    task = jsonl(path=write(tmp_path / "d.jsonl", rows), verifier="regex", held_out=1)
    assert task.reference is None and task.corrupt is None
    with pytest.raises(RecipeError, match="no reference answers"):
        validate(task)


def test_a_verifier_that_is_wrong_is_found_by_validate():
    rows = [{"prompt": "a", "answer": "1"}]
    lax = Task("t", rows, [], verify=lambda c, r: True, reference=lambda r: "1", corrupt=lambda r, s: "2")
    strict = Task("t", rows, [], verify=lambda c, r: False, reference=lambda r: "1", corrupt=lambda r, s: "2")
    report = validate(lax)
    assert not report.ok and report.corrupted_accepted == 1 and report.first_accepted == "'a' -> '2'"
    report = validate(strict)
    assert not report.ok and report.references_rejected == 1 and report.first_rejected == "'a' -> '1'"
    assert not validate(Task("t", [], [], verify=lambda c, r: True, reference=lambda r: "1")).ok


@pytest.mark.parametrize(
    ("content", "settings", "says"),
    [
        ('{"prompt": "a"}\n\n{"prompt": \n', {}, r"d\.jsonl:3: not valid JSON: Expecting value at column 11"),
        ('{"prompt": "a"}\n[1]\n', {}, r"d\.jsonl:2: expected an object, got list"),
        ("\n", {}, "there are no rows in it"),
        ('{"promt": "a"}\n', {}, "row 1 has no column 'prompt'(.|\n)*did you mean 'promt'"),
        ('{"prompt": 3}\n', {}, "row 1 is neither text nor a list of messages"),
        ('{"prompt": []}\n', {}, "row 1 is neither text nor a list of messages"),
        ('{"prompt": [{"role": "user"}]}\n', {}, "row 1 is neither text nor a list of messages"),
        (
            '{"prompt": "a", "anwser": "1"}\n',
            {"verifier": "exact", "held_out": 0},
            "is missing(.|\n)*did you mean 'anwser'",
        ),
        ('{"prompt": "a", "answer": null}\n', {"verifier": "exact", "held_out": 0}, "of prompt 'a' is missing"),
        ('{"prompt": "a", "answer": [1]}\n', {"verifier": "exact", "held_out": 0}, "is a list, not text or a number"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, content, settings, says):
    (tmp_path / "d.jsonl").write_text(content)
    with pytest.raises(DataError, match=says):
        jsonl(path=str(tmp_path / "d.jsonl"), **settings)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.json", b'[{"prompt": "a"},\n {]', r"d\.json:2: not valid JSON"),
        ("d.json", b'{"prompt": "a"}', "expected a list of objects"),
        ("d.csv", b"prompt,answer\na,1,2\n", r"d\.csv:2: 2 columns are named"),
        ("d.csv", b"prompt,answer\na\n", r"d\.csv:2: 2 columns are named"),
        ("d.jsonl", b'{"prompt": "\xff"}\n', "not UTF-8 text"),
        ("d.csv", b"prompt\n\xff\n", "not UTF-8 text"),
        ("d.parquet", b"nothing of the kind", "not a Parquet file"),
        ("d.txt", b"hello", "cannot read '.txt' files"),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        jsonl(path=str(tmp_path / name))


def test_missing_files_and_folders(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no such file(.|\n)*did you mean 'train\.jsonl'"):
        jsonl(path=str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match=r"no such file: \./nowhere"):
        jsonl(path="./nowhere")
    assert len(jsonl(path=str(tmp_path)).train) == 18, "a folder is read by split"
    with pytest.raises(DataError, match=r"should hold test\.jsonl"):
        jsonl(path=str(tmp_path), split="test")


def test_unknown_verifiers_name_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'numeric'"):
        jsonl(path=write(tmp_path / "d.jsonl", ROWS), verifier="numerc")
    assert registry.get("task", "jsonl").settings["path"].required


@pytest.mark.skipif(not MATH.is_dir(), reason="the mathematics files are not beside this checkout")
@pytest.mark.parametrize(
    ("file", "columns"),
    [
        ("aime24", {"prompt": "problem", "answer": "answer", "solution": "none"}),
        ("amc23", {"prompt": "problem", "answer": "answer"}),
        ("minerva_math", {"prompt": "problem", "answer": "solution", "solution": "solution"}),
        ("svamp", {"prompt": "Question", "answer": "Answer"}),
    ],
)
def test_mathematics_is_verified(file, columns):
    task = jsonl(path=str(MATH / f"{file}.jsonl"), verifier="math_verify", **columns)
    rows = (*task.train[:6], *task.held_out[:2])
    assert all(task.verify(f"So the answer is {task.reference(r)}", r) for r in rows)
    report = validate(task, limit=6)
    assert report.references_rejected == 0 and report.corrupted_accepted == 0, report
