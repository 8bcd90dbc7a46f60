"""Process rewards: steps are cut from the text, every decision is in one, and a score is a number for each step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.errors import CoterieError, RecipeError, RewardError
from coterie.recipe import resolve
from coterie.rewards import process
from coterie.rollouts import Rollouts
from coterie.tasks import sort
from tests.e2e.conftest import TINY

LINES = [
    *TINY, "task.lines=true", "task.dense=true", "task.digits=6", "task.alphabet='12'", "rollout.max_tokens=12",
    "credit.baseline=thought_norm",
]  # fmt: skip


@pytest.mark.parametrize(
    ("pieces", "steps"),
    [
        (["a", "\n", "b"], [0, 0, 1]),
        (["a\n", "b\n", "\n", "c"], [0, 1, 1, 2]),
        (["\n", " ", "a", "\n\n", "b", ""], [0, 0, 0, 0, 1, 1]),
        (["a", "\nb", "\n", "c"], [0, 1, 1, 2]),
        (["a b", " c\n", " ", "\n"], [0, 0, 0, 0]),
        (["", "\n", " "], [-1, -1, -1]),
        ([], []),
        (["a\nb", "c"], [0, 0]),  # one token with two steps: the first has none of its own
    ],
)
def test_a_token_is_in_the_step_in_which_its_text_ends(pieces: list[str], steps: list[int]) -> None:
    assert process.split(pieces, "\n") == steps


def test_other_separators_and_stop_strings() -> None:
    assert process.split(["a\n", "b", "\n\n", "c"], "\n\n") == [0, 0, 0, 1]
    assert process.split(["a", "\n", "\n", "c"], "\n\n") == [0, 0, 0, 1], "a separator may lie across tokens"
    assert process.split(["a", "\n", "Q:", "\n", "b"], "\n", ("\nQ:",)) == [0] * 5


@given(st.lists(st.text("ab \n", max_size=3), max_size=12))
def test_steps_are_the_lines_that_are_not_blank(pieces: list[str]) -> None:
    steps = process.split(pieces, "\n")
    whole = [line for line in "".join(pieces).split("\n") if line.strip()]
    assert len(steps) == len(pieces) and steps == sorted(steps)
    found = max(steps, default=-1) + 1
    assert set(steps) == set(range(found)) if found else set(steps) <= {-1}
    one_by_one = process.split(list("".join(pieces)), "\n")
    assert max(one_by_one, default=-1) + 1 == len(whole) >= found
    texts = process.texts_of_steps(one_by_one, list("".join(pieces)), "".join)
    assert texts == [line.strip() for line in whole]


def test_columns_are_padded() -> None:
    mask = torch.tensor([[True, True, True], [True, False, True]])
    out = process.columns([[0, 0, 1], [0, 0]], [[0.5, 1.0], [2.0]], mask)
    assert out["turn"].tolist() == [[0, 0, 1], [0, -1, 0]]
    assert out["step_rewards"].tolist() == [[0.5, 1.0], [2.0, 0.0]]
    assert process.columns([[-1], []], [[], None], mask[:, :1] & torch.tensor([[True], [False]]))[
        "step_rewards"
    ].shape == (2, 1)


def lengths(completions: list[str], completion_steps: list[list[str]], **columns: Any) -> list[list[float]]:
    return [[float(len(s)) for s in steps] for steps in completion_steps]


def batch_of(*overrides: Any, process: Any = None, functions: Any = None) -> tuple[Rollouts, Any]:
    values = {} if process is None else {"rewards.process": process}
    run = build(resolve(overrides=[*LINES, *overrides], values=values, functions=functions))
    run.metrics = {}
    batch = collect(run, 0, Clock())
    assert batch is not None
    return batch, run


def test_it_fills_turn_and_step_rewards_through_the_real_tokenizer() -> None:
    batch, run = batch_of(process=lengths)
    assert batch["step_rewards"].shape[1] > 1
    for i, text in enumerate(batch.texts):
        steps = [line.strip() for line in text.split("\n") if line.strip()]
        n = int(batch["turn"][i].max()) + 1
        assert n == len(steps)
        assert batch["step_rewards"][i].tolist() == [
            *map(float, map(len, steps)),
            *[0.0] * (len(batch["step_rewards"][i]) - n),
        ]
        for k, step in enumerate(steps):
            tokens = batch["tokens"][i][batch["turn"][i] == k].tolist()
            assert run.policy.decode(tokens).strip() == step
    assert (batch["turn"][~batch["mask"]] == -1).all()
    assert "lengths" not in batch.columns["components"], "it scores steps and is no component of the reward"


def test_the_tasks_own_process_runs_only_where_a_piece_asks() -> None:
    batch, run = batch_of()
    assert run.process == "positions_of_steps" and "turn" in batch
    plain, run = batch_of("credit.baseline=group_norm")
    assert run.process is None and "turn" not in plain
    tree, run = batch_of("credit.baseline=edge_value", "rollout.strategy={segment_tree: {branching: [2, 2]}}")
    assert run.process is None and "turn" in tree and "step_rewards" not in tree


def test_sort_on_lines_marks_every_digit() -> None:
    task = sort(digits=3, lines=True, train=20, held_out=5)
    row = {"prompt": "312>", "answer": "1\n2\n3"}
    assert task.verify is not None and task.process is not None
    assert task.verify("1\n2\n3", row) and not task.verify("123", row)
    steps = [["1", "9", "3", "4"], ["1"], []]
    assert task.process.fn(["", "", ""], steps, [row["answer"]] * 3) == [[1, 0, 1, 0], [1], []]
    assert sort(digits=2, train=20, held_out=5).process.fn([""], [["12"]], ["13"]) == [[0.5]]


def test_a_separator_of_ones_own() -> None:
    batch, _ = batch_of("rewards.step_separator='1'", process=lengths)
    for i, text in enumerate(batch.texts):
        assert int(batch["turn"][i].max()) + 1 == len([p for p in text.split("1") if p.strip()])


def too_few(completions: list[str], completion_steps: list[list[str]]) -> list[Any]:
    return [[0.0] * (len(s) + 1) for s in completion_steps]


def text(completions: list[str], completion_steps: list[list[str]]) -> list[Any]:
    return [["x"] * len(s) for s in completion_steps]


def flat(completions: list[str]) -> list[float]:
    return [0.0] * len(completions)


def raising(completions: list[str], completion_steps: list[list[str]]) -> list[Any]:
    if any(len(s) == 1 for s in completion_steps):
        raise ValueError("one step")
    return [[1.0] * len(s) for s in completion_steps]


def abstaining(completions: list[str], completion_steps: list[list[str]]) -> list[Any]:
    return [[1.0] * len(s) if len(s) > 1 else None for s in completion_steps]


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            too_few,
            RewardError,
            r"process function 'too_few' gave .* for sample 0, which has \d steps(.|\n)*completion_steps",
        ),
        (text, RewardError, "gave 'x' for sample"),
        (flat, RewardError, r"gave 0.0 for sample 0, which has"),
        (raising, RewardError, r"'raising' raised ValueError: one step on sample"),
        (lambda completions, nothing: [], RewardError, "takes 'nothing', which is no column of the data"),
        ("numbers", RecipeError, r"rewards.process names no function, got 'numbers'(.|\n)*file.py:name"),
        ({"fn": lengths, "wait": 1}, RecipeError, "a reward function is written"),
        ({"fn": lengths, "name": "positions"}, RecipeError, "both named positions"),
    ],
)
def test_what_is_no_score_of_steps_is_refused(function: Any, error: type[CoterieError], message: str) -> None:
    with pytest.raises(error, match=message):
        batch_of(process=function)


def test_a_rollout_whose_process_fails_is_treated_as_the_recipe_says() -> None:
    zero, run = batch_of(process={"fn": raising, "on_error": "zero"})
    single = (zero["turn"].amax(-1) + 1) == 1
    assert len(zero) == 16 and single.any() and not single.all()
    assert (zero["step_rewards"][single] == 0).all() and run.metrics["reward/errors"] == single.sum()
    none, run = batch_of(process={"fn": raising, "on_error": "none"})
    assert len(none) == 16 - single.sum() and ((none["turn"].amax(-1) + 1) != 1).all()
    silent, run = batch_of(process=abstaining)
    assert ((silent["turn"].amax(-1) + 1) > 1).all() and run.metrics["reward/nones"] == 16 - len(silent)


def test_it_is_written_down_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("marks.py").write_text(
        "def marks(completions, completion_steps): return [[1.0] * len(s) for s in completion_steps]\n"
    )
    recipe = resolve(overrides=[*LINES, "rewards.process={fn: marks.py:marks, timeout: 9}"])
    written = recipe.to_dict()
    assert written["rewards"]["process"] == {"fn": f"{tmp_path}/marks.py:marks", "timeout": 9}
    again = resolve(values={k: v for k, v in written.items() if k != "method"}, method=written["method"])
    assert again.process == recipe.process and again.to_yaml() == recipe.to_yaml()
    run = build(again)
    run.metrics = {}
    batch = collect(run, 0, Clock())
    assert batch is not None and batch["step_rewards"].max() == 1, "with a timeout it runs in a process of its own"
    run.rewards.close()


def test_batches_of_several_rounds_are_stacked_whatever_their_steps(tmp_path: Path) -> None:
    (tmp_path / "few.py").write_text(
        "from coterie.pieces import filter\n@filter()\n"
        "def few(groups, turn, *, max_rounds: int = 4):\n    return (groups == 0).float()\n"
    )
    batch, run = batch_of(f"selection.filters=['{tmp_path}/few.py:few']", process=lengths)
    assert run.metrics["groups/drawn"] == 4 + 3 + 2 + 1 and len(batch) == 16
    assert (batch["turn"].amax(-1) < batch["step_rewards"].shape[1]).all()
    narrow = batch.with_columns(step_rewards=batch["step_rewards"][:, :1])
    both = Rollouts.concat([batch, narrow])["step_rewards"]
    assert torch.equal(both[:16], batch["step_rewards"]) and (both[16:, 1:] == 0).all()
