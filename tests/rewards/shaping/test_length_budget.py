"""DAST's length reward, and the rewards of UI-R1 that it is added to."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.length_budget import dast

from coterie.credit import group_norm
from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.rewards import gui
from coterie.rewards.shaping import length_budget

GROUP = torch.zeros(4, dtype=torch.long)
rollouts = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), min_size=2, max_size=8)


def D(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.oracle("ui-r1")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"bonus": 0.2, "slope": 2.0, "haste": 0.3, "least": 0.05}])
def test_against_the_oracle(kind: str, settings: dict[str, float]) -> None:
    named = dict(zip(("b", "a", "c", "d"), settings.values(), strict=False))
    named |= {"a": -named["a"]} if named else {}
    for seed in range(3):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        of = [n[k].tolist() for k in ("rewards", "lengths", "groups")]
        got = length_budget(t["rewards"], t["groups"], t["lengths"], t["correct"], **settings)
        np.testing.assert_allclose(got, dast(*of, n["correct"].tolist(), **named), atol=1e-12)
        got = length_budget(t["rewards"], t["groups"], t["lengths"], top=0.3, **settings)
        np.testing.assert_allclose(got, dast(*of, (n["rewards"] >= 0.3).tolist(), **named), atol=1e-12)


@pytest.mark.oracle("ui-r1")
def test_numbers() -> None:
    got = length_budget(D(3, 3, 2, 0), GROUP, torch.tensor([40, 80, 120, 100]), top=3.0)
    np.testing.assert_allclose(got, [3.7778, 3.5556, 1.9, -0.1], atol=1e-4)
    same = length_budget(D(3, 3, 3, 3), GROUP, torch.tensor([50] * 4), top=3.0)
    assert same.tolist() == [3.5] * 4 and not group_norm(same, GROUP).any()
    hard = length_budget(D(0, 0, 0, 0), GROUP, torch.tensor([50, 100, 75, 25]), top=3.0)
    assert hard.argmax() == 1 and hard.argmin() == 3  # nobody is right: the longest thought loses least
    silent = length_budget(D(3, 0, 0, 3), GROUP, torch.zeros(4, dtype=torch.long), top=3.0)
    assert silent.tolist() == [3.5, -0.1, -0.1, 3.5]


@pytest.mark.reduction("ui-r1")
@given(rollouts)
def test_without_bonus_and_malus_it_is_grpo(rows: list[tuple[int, int]]) -> None:
    rewards, lengths = D(*(r for r, _ in rows)), torch.tensor([n for _, n in rows])
    one = torch.zeros(len(rows), dtype=torch.long)
    off = length_budget(rewards, one, lengths, top=3.0, bonus=0.0, slope=0.0, haste=0.0, least=0.0)
    assert torch.equal(group_norm(off, one), group_norm(rewards, one))
    flat = length_budget(rewards, one, lengths, top=3.0, slope=0.0, haste=0.0)
    torch.testing.assert_close(flat, rewards + torch.where(rewards == 3, 0.5, -0.1).double())


@given(rollouts)
def test_of_right_ones_the_shorter_and_of_wrong_ones_the_longer_are_worth_more(rows: list[tuple[int, int]]) -> None:
    rewards, lengths = D(*(r for r, _ in rows)), torch.tensor([n for _, n in rows])
    added = length_budget(rewards, torch.zeros(len(rows), dtype=torch.long), lengths, top=3.0) - rewards
    right = rewards == 3
    assert (added[right] >= 0.1 - 1e-12).all() and (added[~right] <= -0.1 + 1e-12).all()
    for mine, sign in ((right, -1), (~right, 1)):
        ordered = added[mine][lengths[mine].argsort(stable=True)] * sign
        assert (ordered.diff() >= -1e-12).all()


def test_what_it_records_and_what_is_missing() -> None:
    with collect(seen := Collector()):
        length_budget(D(3, 3, 2, 0), GROUP, torch.tensor([40, 80, 120, 100]), top=3.0)
    assert seen.means() == pytest.approx({"length_budget/tokens": 90.0, "length_budget/over": -1 / 18})
    with pytest.raises(RewardError, match="the task has no verifier"):
        length_budget(D(1, 0, 0, 0), GROUP, torch.tensor([1, 2, 3, 4]))


def test_a_whole_group_on_a_screen() -> None:
    """The three rewards of UI-R1 on four answers, and the budget over their sum."""
    gold = {"action": "click", "box": [10, 20, 30, 40]}
    click = json.dumps({"action": "click", "point": [10, 40]})
    texts = [f"<think>x</think><answer>{click}</answer>", f"<answer>{click}</answer>",
             '<think>y</think><answer>{"action": "click", "point": [9, 40]}</answer>', "nothing"]  # fmt: skip
    parts = [f(texts, gold=[gold] * 4) for f in (gui.action_name, gui.coordinate)]
    thought, brief = gui.form(texts), gui.brief_form(texts)
    assert (thought, brief) == ([1, 0, 1, 0], [0, 1, 0, 0])
    total = torch.tensor([*parts, thought], dtype=torch.float64).sum(0)
    assert total.tolist() == [3, 2, 2, 0]
    worth = length_budget(total, GROUP, torch.tensor([len(t) for t in texts]), top=3.0)
    assert worth.argsort(descending=True)[0] == 0 and worth[0] > 3.1 and (worth[1:] <= total[1:] - 0.1).all()
