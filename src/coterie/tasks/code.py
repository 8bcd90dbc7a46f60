"""Python functions to write, graded by their tests in a sandbox. Reads HumanEval (arXiv:2107.03374) as it is."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from coterie.errors import DataError, did_you_mean
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.sandbox import Limits, Sandbox
from coterie.sandbox.testing import run_tests
from coterie.tasks.base import Task
from coterie.tasks.sources import load_rows
from coterie.tasks.split import Row, disjoint, first, split_disjoint

_FENCED = re.compile(r"```[a-zA-Z0-9]*\n(.*?)(?:```|\Z)", re.DOTALL)


@task(paper="arXiv:2107.03374")
def code(
    *,
    source: str = "openai/openai_humaneval",
    split: str = "test",
    prompt: str = "{prompt}",
    tests: str = "test",
    entry_point: str = "entry_point",
    solution: str = "canonical_solution",
    seconds: float = 10.0,
    memory_mib: int = 512,
    backend: Literal["auto", "bubblewrap", "namespaces", "none"] = "auto",
    held_out: float | int | str = 0.1,
    limit: int | None = None,
    seed: int = 0,
) -> Task:
    """Functions to write. source: hub name, file or folder of rows with a prompt, tests, and the function's name.

    A completion is right if the tests run through against it within `seconds` and `memory_mib`, solution and tests each
    in a sandbox (see the page on rewards). Its code is its last fenced block, else all of it; where that does not
    define the function, it continues the row's prompt. tests: the column of test code; where it defines `check`, that
    is called with the function. backend=none runs model-written code without a sandbox. prompt: a text with {prompt}.
    """
    known = Limits(seconds=seconds, cpu_seconds=int(seconds) + 1, memory_mib=memory_mib)
    grader = Grader(known, backend)

    def rows(where: str, part: str) -> list[Row]:
        names = {"tests": tests, "entry_point": entry_point, "solution": solution}
        return [_row(r, prompt, names, where, i) for i, r in enumerate(load_rows(where, split=part), 1)]

    if isinstance(held_out, str):
        held = rows(held_out, "test")
        train, notes = disjoint(rows(source, split), held, source)
    else:
        train, held, notes = split_disjoint(rows(source, split), held_out, seed, source)
    with_solutions = all(r["solution"] is not None for r in (*train, *held))
    return Task(
        "code", first(train, limit, "limit"), held, verify=grader.verify, verdict="correct",
        rewards=[WeightedReward(grader, "correct")], notes=notes,
        reference=(lambda row: row["solution"]) if with_solutions else None,
        corrupt=(lambda row, n: "    return None\n") if with_solutions else None,
    )  # fmt: skip


class Grader:
    """1 for completions whose tests pass, several at a time; the reward and the verdict of the task."""

    def __init__(self, limits: Limits, backend: Literal["auto", "bubblewrap", "namespaces", "none"]) -> None:
        self.limits, self.backend = limits, backend
        self._sandbox: Sandbox | None = None

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        rows = [{n: columns[n][i] for n in ("tests", "entry_point", "begins")} for i in range(len(texts))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda pair: float(self.verify(*pair)), zip(texts, rows, strict=True)))

    def verify(self, completion: str, row: Row) -> bool:
        """Whether the row's tests pass. Raises SandboxError where there is no sandbox."""
        if self._sandbox is None:
            self._sandbox = Sandbox(self.limits, backend=self.backend)
        return run_tests(self._sandbox, solution_of(completion, row), row["tests"]).passed


def solution_of(completion: str, row: Row) -> str:
    """The program that a completion stands for, with the beginning that the prompt gives."""
    blocks = _FENCED.findall(completion)
    text = blocks[-1] if blocks else completion
    defines = re.search(rf"^\s*(async\s+)?def\s+{re.escape(row['entry_point'])}\b", text, re.MULTILINE)
    return _helpers(row["begins"], row["entry_point"]) + "\n" + text if defines else row["begins"] + text


def _helpers(begins: str, entry_point: str) -> str:
    """What the beginning of a program brings besides the function: imports and other functions."""
    try:
        tree = ast.parse(begins)
    except SyntaxError:
        return ""  # plain text
    tree.body = [n for n in tree.body if getattr(n, "name", None) != entry_point]
    return ast.unparse(tree)


def _row(raw: Row, prompt: str, names: dict[str, str], source: str, number: int) -> Row:
    for column in ("prompt", names["tests"], names["entry_point"]):
        if not isinstance(raw.get(column), str):
            raise DataError(f"row {number} has no text in '{column}'", where=source, hint=did_you_mean(column, raw))
    begins, entry = raw["prompt"], raw[names["entry_point"]]
    tests = "\n".join([_helpers(begins, entry), raw[names["tests"]]])
    if re.search(r"^def check\(", raw[names["tests"]], re.MULTILINE):
        tests += f"\ncheck({entry})\n"
    return {
        "prompt": prompt.replace("{prompt}", begins), "begins": begins, "entry_point": entry, "tests": tests,
        "solution": raw.get(names["solution"]),
    }  # fmt: skip
