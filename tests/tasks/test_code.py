from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path

import pytest
from sandbox.test_hostile import needed

from coterie import registry
from coterie.errors import DataError
from coterie.tasks.base import validate
from coterie.tasks.code import solution_of

HUMANEVAL = Path(__file__).parents[3] / "shared" / "data" / "humaneval" / "HumanEval.jsonl.gz"
ROWS = [
    {
        "prompt": 'import math\n\ndef half(x):\n    return x / 2\n\ndef area(r):\n    """Area of a circle."""\n',
        "entry_point": "area",
        "test": "def check(f):\n    assert abs(f(2) - 4 * math.pi) < 1e-9\n    assert half(f(0)) == 0",
        "canonical_solution": "    return math.pi * r**2\n",
    },
    {
        "prompt": "def one():\n",
        "entry_point": "one",
        "test": "assert one() == 1",
        "canonical_solution": "    return 1\n",
    },
]


def load(tmp_path: Path, rows: list[dict[str, str]] = ROWS, **settings: object) -> object:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return registry.get("task", "code").fn(source=str(path), **{"held_out": 1, **settings})


@needed
def test_completions_are_graded_however_they_are_written(tmp_path: Path) -> None:
    task = load(tmp_path)
    row = next(r for r in (*task.train, *task.held_out) if r["entry_point"] == "area")
    right = "    return math.pi * r * r\n"
    whole = "def area(r):\n    return math.pi * r * r"
    for completion in (
        right,
        whole,
        f"Here:\n```python\n{whole}\n```\nDone.",
        f"```\n1\n```\nno:\n```py\n{whole}\n```",
    ):
        assert task.verify(completion, row), completion
    for completion in ("    return 0\n", "", "I cannot.", f"```python\n{whole}\n```\nor\n```\nprint(1)\n```"):
        assert not task.verify(completion, row), completion
    columns = {n: [row[n]] * 3 for n in ("tests", "entry_point", "begins")}
    assert task.rewards[0].fn([right, "", [{"role": "assistant", "content": whole}]], **columns) == [1.0, 0.0, 1.0]
    assert validate(task).ok


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1 has no text in 'test'"):
        load(tmp_path, [{"prompt": "a", "entry_point": "f", "tests": "x"}])


def test_helpers_of_the_prompt_are_kept_for_both_sides() -> None:
    row = {"begins": ROWS[0]["prompt"], "entry_point": "area"}
    code = solution_of("```python\ndef area(r): return half(r)\n```", row)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["area"](4) == 2.0


@needed
@pytest.mark.skipif(not HUMANEVAL.exists(), reason="HumanEval is not in ../shared/data/humaneval")
def test_humaneval_accepts_its_solutions_and_rejects_broken_ones(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in gzip.open(HUMANEVAL, "rt")]
    task = load(tmp_path, rows, held_out=0.0)
    assert len(task.train) == 164
    columns = {n: [r[n] for r in task.train] for n in ("tests", "entry_point", "begins")}
    grade = task.rewards[0].fn
    assert grade([r["solution"] for r in task.train], **columns) == [1.0] * 164
    assert grade([broken(r) for r in task.train], **columns) == [0.0] * 164


def broken(row: dict[str, str]) -> str:
    """The right solution, whose results are changed a little."""
    tree = ast.parse(row["begins"] + row["solution"])
    name = row["entry_point"]
    for node in tree.body:
        if getattr(node, "name", None) == name:
            node.name = "_right"  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == name:
            node.id = "_right"
    return "```python\n" + ast.unparse(tree) + f"\n\ndef {name}(*args):\n    return _off(_right(*args))\n" + OFF + "```"


OFF = """
def _off(value):
    if value is None or isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    return type(value)([*value, 12345]) if not isinstance(value, dict) else {**value, "x": 1}
"""
