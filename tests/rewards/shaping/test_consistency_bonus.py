"""GRPO-CARE: the bonus, and where in a completion the answer stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.grpo_care import consistency as oracle

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect as roll
from coterie.credit import group_norm
from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.recipe import resolve
from coterie.rewards.answer_span import answer_span
from coterie.rewards.shaping import consistency_bonus
from coterie.tasks.gsm8k import final_answer

FOUR, LIVE = torch.zeros(4, dtype=torch.long), torch.ones(4, 1, dtype=torch.bool)


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.oracle("grpo-care")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_against_the_oracle(kind: str) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        graded = np.random.default_rng(seed).random(len(n["rewards"]))
        if seed == 3:
            graded[::4] = np.nan
        t["logp_ref"] = inputs.garbage("logp_ref", t["logp_ref"], t["mask"])
        answers = [n["logp_ref"][i][n["answer_mask"][i]].tolist() for i in range(len(graded))]
        columns = [t[c] for c in ("rewards", "groups", "logp_ref", "answer_mask", "mask")]
        parts = {"graded": torch.from_numpy(graded)}
        for accuracy, of in ((n["correct"] * 1.0, {}), (graded, {"accuracy": "graded"})):
            for settings in ({}, {"coef": 2.0, "margin": 0.2, "cap": 0.3}):
                want = oracle(n["rewards"], n["groups"], accuracy.tolist(), answers, **settings)
                got = consistency_bonus(*columns, parts, t["correct"], **of, **settings)
                np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)


@pytest.mark.oracle("grpo-care")
def test_numbers_of_the_source() -> None:
    logp, right = R(-0.01, -0.5, -0.02, -0.3).unsqueeze(-1), torch.tensor([True, True, False, True])
    got = consistency_bonus(R(2, 2, 1, 2), FOUR, logp, LIVE, LIVE, {}, right)
    assert got.tolist() == [2.5, 2, 1, 2]
    np.testing.assert_allclose(group_norm(got, FOUR).numpy(), [0.9932, 0.1986, -1.3905, 0.1986], atol=1e-4)


def test_what_has_no_answer_or_no_verdict_has_no_bonus() -> None:
    logp, right = R(-0.3, -0.1, -0.1, -0.1).unsqueeze(-1), torch.tensor([True, True, True, False])
    found = torch.tensor([[True], [False], [False], [True]])
    assert consistency_bonus(R(1, 1, 1, 0), FOUR, logp, found, LIVE, {}, right).tolist() == [1.5, 1, 1, 0]
    wrong = torch.zeros(4, dtype=torch.bool)
    assert consistency_bonus(R(1, 1, 1, 0), FOUR, logp, LIVE, LIVE, {}, wrong).tolist() == [1, 1, 1, 0]
    with pytest.raises(RewardError, match="the task has no verifier"):
        consistency_bonus(R(1, 1, 1, 0), FOUR, logp, LIVE, LIVE, {})
    with pytest.raises(RewardError, match="'graded', which no reward function gives"):
        consistency_bonus(R(1, 1, 1, 0), FOUR, logp, LIVE, LIVE, {}, right, accuracy="graded")


def test_what_it_records() -> None:
    logp, right = R(-0.5, -0.1, -0.1, -0.1).unsqueeze(-1), torch.tensor([True, True, False, False])
    with collect(seen := Collector()):
        consistency_bonus(R(1, 1, 0, 0), FOUR, logp, LIVE, LIVE, {}, right)
    likely = (np.exp(-0.5) + 3 * np.exp(-0.1)) / 4
    assert seen.means() == {"care/likelihood": pytest.approx(likely), "care/consistent_share": 0.5}


@pytest.mark.reduction("grpo-care")
@given(st.lists(st.tuples(st.floats(-3, 0), st.booleans()), min_size=1, max_size=8))
def test_without_a_bonus_it_is_grpo_and_without_a_bar_all_right_ones_have_it(rows: list[tuple[float, bool]]) -> None:
    logp, right = R(*(x for x, _ in rows)).unsqueeze(-1), torch.tensor([r for _, r in rows])
    rewards, live = right.double(), torch.ones(len(rows), 1, dtype=torch.bool)
    columns = (rewards, torch.zeros(len(rows), dtype=torch.long), logp, live, live, {}, right)
    assert torch.equal(consistency_bonus(*columns, coef=0.0), rewards)
    assert torch.equal(consistency_bonus(*columns, margin=2.0), 1.5 * rewards)
    assert torch.equal(consistency_bonus(*columns, cap=0.0), 1.5 * rewards)


def decode(ids: Any) -> str:
    return "".join(chr(i) for i in ids)


def spelled(text: str, read: Any) -> str:
    span = answer_span([ord(c) for c in text], decode, read)
    return text[span.start : span.stop]


@pytest.mark.parametrize(
    "text,answer",
    [
        ("2 + 2 = 4, so #### 1,204 apples.", "1,204"),
        ("first 12 then 12", "12"),
        (r"hence \boxed{17} as said", "17"),
        ("no number at all", ""),
        ("", ""),
        ("7", "7"),
        ("3.50", "3.5"),
    ],
)
def test_where_a_number_is_spelled(text: str, answer: str) -> None:
    assert spelled(text, lambda t: str(final_answer(t))) == answer


@given(st.text("ab12 ", max_size=12), st.integers(1, 999), st.text("ab ", max_size=5))
def test_the_span_has_the_answer_and_nothing_shorter_of_it_does(before: str, number: int, after: str) -> None:
    def read(text: str) -> str:
        return str(final_answer(text))

    text = f"{before} {number}{after}"
    found = spelled(text, read)
    assert read(found) == read(text) == str(number)
    assert read(found[1:]) != read(text) and read(found[:-1]) != read(text)


def test_the_loop_marks_the_answer() -> None:
    """With a task that answers with the last character, and with one that answers with all of the text."""
    tiny = ["task={sort: {digits: 2, train: 40, held_out: 12}}", "model={init: {layers: 1, width: 16, heads: 2}}",
            "threads=1", "draw.prompts=2", "rollout.group_size=4", "rollout.max_tokens=6"]  # fmt: skip
    run = build(resolve(method="grpo-care", overrides=tiny))
    for answer in (None, lambda text: text[-1:]):
        run.metrics, run.task.answer = {}, answer
        batch = roll(run, 0, Clock())
        assert batch is not None and any(batch.texts)
        for row, text in enumerate(batch.texts):
            marked = batch["tokens"][row][batch["answer_mask"][row]].tolist()
            assert run.policy.decode(marked) == (text if answer is None else answer(text))
            assert len(marked) <= 1 or answer is None
        assert not (batch["answer_mask"] & ~batch["mask"]).any()
    plain = build(resolve(overrides=tiny))
    plain.metrics = {}
    assert "answer_mask" not in (roll(plain, 0, Clock()) or batch)
