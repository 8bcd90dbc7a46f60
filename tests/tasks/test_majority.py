"""Majority votes compare final answers, not whole texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.build import build_task
from coterie.evaluation import maj_at_k
from coterie.recipe import resolve


@pytest.mark.parametrize("verifier", ["numeric"])
def test_votes_are_for_the_number_a_completion_ends_in(tmp_path: Path, verifier: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "p{i}", "answer": "{i}"}}\n' for i in range(4)))
    task = build_task(resolve(values={"task": str(file)}, overrides=[f"task.verifier={verifier}"]))
    assert task.answer is not None
    texts = ["so it is 3", "1 and 2 make 3.", "it is 7", "\\boxed{3} of 9"]
    votes = [task.answer(t) for t in texts]
    assert votes == ["3", "3", "7", "3"]
    assert maj_at_k([votes], [[True, True, False, True]]) == 1.0
    assert maj_at_k([texts], [[True, True, False, True]]) == 0.75, "as whole texts no two agree"
