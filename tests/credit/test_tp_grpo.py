from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.steps import decisions, steps
from oracles.tp_grpo import advantages, thoughts

from coterie.credit import group_norm, thought_norm
from coterie.metrics import Collector, collect


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


def rollouts(marks: list[list[int]]) -> dict[str, torch.Tensor]:
    """One token a step."""
    width = max(map(len, marks))
    turn = torch.tensor([[*range(len(m)), *[-1] * (width - len(m))] for m in marks])
    padded = torch.tensor([[*m, *[1] * (width - len(m))] for m in marks], dtype=torch.float64)
    return {"step_rewards": padded, "turn": turn, "mask": turn >= 0}


@pytest.mark.oracle("tp-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize("settings", [{}, {"blame": 0.3, "ddof": 1, "eps": 0.1}])
def test_against_the_oracle(kind: str, verified: bool, settings: dict[str, Any]) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        marks = [
            [bool(x > 0.5) for x in n["step_rewards"][i, : steps(n["turn"], n["mask"], i)]]
            for i in range(len(n["mask"]))
        ]
        won = n["correct"] if verified else n["rewards"] > 0
        outcome, of_steps = advantages(marks, won, n["rewards"], n["groups"], **settings)
        want = np.zeros(n["mask"].shape)
        for i in range(len(want)):
            for s in decisions(n["mask"], i):
                want[i, s] = of_steps[i][n["turn"][i, s]] if n["turn"][i, s] >= 0 else outcome[i]
        columns = [t[c] for c in ("step_rewards", "turn", "mask", "rewards", "groups")]
        near(thought_norm(*columns, t["correct"] if verified else None, **settings), want)


@pytest.mark.oracle("tp-grpo")
def test_numbers_of_the_source() -> None:
    marks = [[1, 1, 0, 1], [1, 0, 0]]
    assert thoughts([True, True, False, True], True, 0.25) == [(2, 1.0), (1, -0.25), (1, 1.0)]
    assert thoughts([True, False, False], False, 0.25) == [(1, 1.0), (2, -1.0)]
    rewards, groups = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    got = thought_norm(**rollouts(marks), rewards=rewards, groups=groups, blame=0.25)
    near(got, [[1.7825, 1.7825, 0.2777, 1.7825], [-0.2175, -2.6252, -2.6252, 0.0]], 1e-3)


def test_errors_cost_what_the_group_can_do() -> None:
    """By default a wrong thought on the way to a right answer costs the share of right answers."""
    marks = [[1, 0], [1, 1], [0, 0], [0, 1]]
    rewards, groups = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    auto = thought_norm(**rollouts(marks), rewards=rewards, groups=groups)
    near(auto, thought_norm(**rollouts(marks), rewards=rewards, groups=groups, blame=0.75).numpy())


@pytest.mark.reduction("tp-grpo")
@given(st.lists(st.tuples(st.floats(-2, 2), st.integers(1, 4)), min_size=2, max_size=6))
def test_one_kind_of_thought_is_grpo(rows: list[tuple[float, int]]) -> None:
    rewards, groups = torch.tensor([r for r, _ in rows], dtype=torch.float64), torch.zeros(len(rows), dtype=torch.long)
    t = rollouts([[1] * n for _, n in rows])
    grpo = group_norm(rewards, groups, ddof=0, eps=1e-6).unsqueeze(-1)
    near(thought_norm(**t, rewards=rewards, groups=groups), torch.where(t["mask"], grpo, 0.0).numpy())


@pytest.mark.reduction("tp-grpo")
@given(st.lists(st.integers(0, 1), min_size=1, max_size=5), st.integers(0, 4), st.integers(2, 4))
def test_splitting_a_step_earns_nothing(marks: list[int], which: int, pieces: int) -> None:
    """The same thoughts in more steps have the same advantages."""
    which %= len(marks)
    longer = [*marks[:which], *[marks[which]] * pieces, *marks[which + 1 :]]
    rewards, groups = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    short, long = (thought_norm(**rollouts([m, [1, 0]]), rewards=rewards, groups=groups) for m in (marks, longer))
    near(short[0, [which]], long[0, [which]].numpy())
    near(short[1, :2], long[1, :2].numpy())


def test_rollouts_without_steps_keep_their_outcome() -> None:
    t = rollouts([[1], [0]])
    t["turn"] = torch.full_like(t["turn"], -1)
    rewards, groups = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    near(thought_norm(**t, rewards=rewards, groups=groups), [[1.0], [-1.0]], 1e-5)


def test_what_it_records() -> None:
    rewards, groups = torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long)
    with collect(seen := Collector()):
        thought_norm(**rollouts([[1, 1, 0], [0]]), rewards=rewards, groups=groups)
    assert seen.means() == {"thoughts/count": 1.5, "thoughts/right_share": pytest.approx(1 / 3)}
