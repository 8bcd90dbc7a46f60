from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.prof import kept
from oracles.steps import steps

from coterie.metrics import Collector, collect
from coterie.selection import process_consistency


def table(probabilities: list[list[float]]) -> dict[str, torch.Tensor]:
    """Columns of rollouts of one token a step."""
    width = max(1, *map(len, probabilities))
    turn = torch.tensor([[*range(len(p)), *[-1] * (width - len(p))] for p in probabilities])
    padded = torch.tensor([[*p, *[9.0] * (width - len(p))] for p in probabilities], dtype=torch.float64)
    return {"step_rewards": padded, "turn": turn, "mask": turn >= 0}


@pytest.mark.oracle("prof")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize(
    "settings", [{"drop": 2}, {"drop": 1, "min_steps": 1, "max_steps": 2}, {"drop": 3, "side": "correct", "penalty": 0}]
)
def test_what_stays_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        scores = [n["step_rewards"][i, : steps(n["turn"], n["mask"], i)].tolist() for i in range(len(n["mask"]))]
        want = kept(scores, n["correct"], n["groups"], **settings)
        got = process_consistency(t["correct"], t["groups"], t["step_rewards"], t["turn"], t["mask"], **settings)
        assert got.tolist() == [float(k) for k in want]


@pytest.mark.oracle("prof")
def test_numbers_of_the_source() -> None:
    steps = [[0.9, 0.8], [0.6, 0.4, 0.9], [0.99], [0.7, 0.7], [0.2, 0.3], [0.9, 0.95, 0.9], [0.5, 0.1]]
    correct = torch.tensor([True] * 4 + [False] * 3)
    groups = torch.zeros(7, dtype=torch.long)
    out = process_consistency(correct, groups, **table(steps), drop=3)
    assert out.nonzero().flatten().tolist() == [0, 3, 4, 6]
    assert kept(steps, correct.tolist(), [0] * 7, 3) == [i in (0, 3, 4, 6) for i in range(7)]


def test_a_wrong_answer_of_one_step_goes_first() -> None:
    """The penalty is taken after the sign."""
    correct = torch.tensor([False, False, True])
    out = process_consistency(
        correct, torch.zeros(3, dtype=torch.long), **table([[0.9, 0.9], [0.1], [0.9, 0.9]]), drop=1
    )
    assert out.tolist() == [1, 0, 1]


@pytest.mark.reduction("prof")
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=9))
def test_dropping_none_is_grpo_on_the_whole_group(rows: list[tuple[bool, int, float]]) -> None:
    correct, groups = torch.tensor([c for c, _, _ in rows]), torch.zeros(len(rows), dtype=torch.long)
    columns = table([[p] * n for _, n, p in rows])
    assert (process_consistency(correct, groups, **columns, drop=0) == 1).all()


@pytest.mark.reduction("prof")
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 12))
def test_equal_marks_only_balance_the_classes(verdicts: list[bool], drop: int) -> None:
    """With a constant process reward as many right as wrong rollouts stay as can be: PROF is class balancing."""
    correct = torch.tensor(verdicts)
    keep = process_consistency(
        correct, torch.zeros(len(verdicts), dtype=torch.long), **table([[0.5, 0.5]] * len(verdicts)), drop=drop
    )
    right, wrong = int(keep[correct].sum()), int(keep[~correct].sum())
    stay = max(len(verdicts) - drop, 0)
    if min(sum(verdicts), len(verdicts) - sum(verdicts)) >= stay / 2:  # enough of both
        assert right + wrong == stay and abs(right - wrong) <= 1


def test_what_it_records() -> None:
    correct = torch.tensor([True, True, False])
    with collect(seen := Collector()):
        process_consistency(
            correct, torch.zeros(3, dtype=torch.long), **table([[1.0, 1.0], [0.5, 0.0], [0.0, 0.0]]), drop=1
        )
    means = seen.means()
    assert means["prof/agreement"] == pytest.approx(np.mean([1.0, -0.5, 1.0]))
    assert means["prof/dropped_correct"] == 0.5 and means["prof/dropped_wrong"] == 0
