"""Judges: what they are shown and may answer, all groups in one call, and what becomes of failures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from games import hold, strict

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.errors import CoterieError, RecipeError, RewardError
from coterie.recipe import resolve
from coterie.registry import get
from coterie.rewards.functions import WeightedReward
from coterie.rewards.pairwise.contest import Contest
from coterie.rewards.pairwise.judge import Pairs
from coterie.rewards.runner import RewardRunner
from coterie.rollouts import Rollouts
from tests.e2e.conftest import TINY

EXAMPLES = Path(__file__).parents[3] / "examples/pairwise_judge.py"
PAIRS = Pairs(
    ["p", "p", "q"], ["a", "bb", ""], [{"answer": "1"}, {"answer": "1"}, {"answer": "2"}], [], ["x", "y", "z"]
)


@pytest.fixture
def compare() -> Iterator[Callable[..., Any]]:
    runners: list[RewardRunner] = []

    def call(fn: Any, pairs: Pairs = PAIRS, **options: Any) -> Any:
        judge = WeightedReward(fn, "j", per_pair=True, **options)
        runners.append(RewardRunner([], judge))
        return runners[-1].compare(judge, pairs)

    yield call
    for runner in runners:
        runner.close()


@pytest.mark.parametrize(
    ("answer", "points"),
    [
        ([(1, 2), [3.5, 0], (0, 0)], [(1, 2), (3.5, 0), (0, 0)]),
        ([0.25, True, 0], [(2.5, 7.5), (10, 0), (0, 10)]),
        ([None, 0.5, (1, 1)], [None, (5, 5), (1, 1)]),
        (np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), [(1, 2), (3, 4), (5, 6)]),
        (torch.tensor([0.0, 1.0, 0.5]), [(0, 10), (10, 0), (5, 5)]),
        ((torch.tensor([1.0, 2.0]), np.float64(0.5), torch.tensor(1.0)), [(1, 2), (5, 5), (10, 0)]),
    ],
)
def test_two_scores_or_a_probability_or_nothing(compare: Any, answer: Any, points: Any) -> None:
    verdicts, outcomes, errors = compare(lambda first, second: answer)
    assert verdicts == points and errors == []
    assert outcomes["none"] == points.count(None) and outcomes["value"] == 3 - points.count(None)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1, 0], "judge 'j' gave 2 values for 3 pairs(.|\n)*a pair"),
        (0.5, "judge 'j' gave float 0.5, not a list(.|\n)*two numbers, or one"),
        ([0, 1, 1.5], r"judge 'j' gave 1.5 for pair 2(.|\n)*probability that first is better"),
        ([-1, 1, 0], "judge 'j' gave -1 for pair 0"),
        ([(1, 2, 3), 0, 0], r"judge 'j' gave \(1, 2, 3\) for pair 0(.|\n)*two numbers"),
        ([0, (1, float("nan")), 0], "judge 'j' gave nan for pair 1"),
        ([0, 0, ("a", "b")], "judge 'j' gave 'a' for pair 2"),
        ([0, 0, "first"], "judge 'j' gave 'first' for pair 2"),
    ],
)
def test_what_is_no_verdict_is_refused(compare: Any, answer: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        compare(lambda first, second: answer, on_error="none")


def test_it_gets_pairs_and_columns_by_name(compare: Any) -> None:
    seen: dict[str, Any] = {}

    def everything(**columns: Any) -> list[float]:
        seen.update(columns)
        return [0.0] * 3

    compare(everything)
    assert seen == {
        "prompts": ["p", "p", "q"], "first": ["a", "bb", ""], "second": ["x", "y", "z"], "answer": ["1", "1", "2"]
    }  # fmt: skip
    compare(lambda answer: [float(a == "2") for a in answer])
    with pytest.raises(RewardError, match="judge 'j' takes 'nothing', which is no column of the data"):
        compare(lambda first, second, nothing: [])
    chat = [{"role": "user", "content": "hi"}]
    compare(lambda **columns: (seen.update(columns), [0.0])[1], Pairs([chat], ["a"], [{}], [], ["b"]))
    assert seen["first"] == [[{"role": "assistant", "content": "a"}]], "messages where prompts are"
    assert seen["second"] == [[{"role": "assistant", "content": "b"}]]


async def patient(first: list[str], second: list[str]) -> list[float]:
    return [1.0] * len(first)


def test_it_may_be_asynchronous(compare: Any) -> None:
    assert compare(patient)[0] == [(10, 0)] * 3


def picky(first: list[str], second: list[str]) -> list[float]:
    if "bb" in first:
        raise ValueError("no b here")
    return [1.0] * len(first)


def test_after_a_raise_each_pair_is_tried_alone(compare: Any) -> None:
    with pytest.raises(RewardError, match=r"judge 'j' raised ValueError: no b here on pair 1: prompt 'p', first 'bb', "
                                          r"second 'y'(.|\n)*on_error to 'none'$"):  # fmt: skip
        compare(picky)
    verdicts, outcomes, errors = compare(picky, on_error="none")
    assert verdicts == [(10, 0), None, (10, 0)] and outcomes["error"] == 1
    assert len(errors) == 1 and "no b here" in errors[0]


def slow(first: list[str], second: list[str]) -> list[float]:
    time.sleep(60)
    return []


def test_one_that_hangs_is_killed(compare: Any) -> None:
    begun = time.monotonic()
    verdicts, outcomes, errors = compare(slow, timeout=0.3, on_error="none")
    assert verdicts == [None] * 3 and outcomes["timeout"] == 3 and time.monotonic() - begun < 50
    assert "judge 'j' timed out after 0.3 s on a batch of 3 pairs" in errors[0]


def test_in_a_process_of_its_own_it_says_the_same(compare: Any) -> None:
    assert compare(picky, PAIRS.part(0), timeout=30.0)[0] == [(10, 0)]


@pytest.mark.parametrize(
    ("scheme", "calls"),
    [("win_rate", 1), ("round_robin", 1), ("anchor", 1), ("bootstrapped", 1), ("swiss", 3), ("single_elimination", 4)],
)
def test_a_round_of_all_groups_is_one_call(scheme: str, calls: int) -> None:
    """Groups of 5, 3, 1 and 2, their rows mixed: as many calls as the largest has rounds, and each as if alone."""
    groups = [7, 3, 7, 9, 3, 7, 2, 7, 3, 7, 2]
    values = [float((5 * i) % 11) for i in range(len(groups))]
    asked: list[int] = []

    def ask(judge: Any, pairs: Pairs) -> Any:
        asked.append(len(pairs))
        points = [(float(a), float(b)) for a, b in zip(pairs.completions, pairs.second, strict=True)]
        return points, Counter({"value": len(points)}), []

    def pairs_of(first: list[int], second: list[int]) -> Pairs:
        assert all(groups[i] == groups[j] and i != j for i, j in zip(first, second, strict=True))
        return Pairs([""] * len(first), [str(values[i]) for i in first], [], [], [str(values[j]) for j in second])

    contest = Contest(WeightedReward(len, "j", per_pair=True), get("scheme", scheme).bind({}))
    held = contest.hold(groups, pairs_of, ask, lambda group: group)
    assert len(asked) == calls and held.verdicts.total() == sum(asked) and held.verdicts["tie"] == 0
    for group in set(groups):
        own = [i for i, g in enumerate(groups) if g == group]
        alone = hold(scheme, strict([values[i] for i in own]), len(own), draw=group)
        assert [held.rewards[i] for i in own] == alone
    assert sum(contest.shown(n) for n in (5, 3, 2)) == sum(asked)


# Through the loop.


def closer(prompts: list[str], first: list[str], second: list[str], answer: list[str]) -> list[tuple[float, float]]:
    def right(text: str, want: str) -> float:
        return float(sum(a == b for a, b in zip(text, want, strict=False)))

    return [(right(a, w), right(b, w)) for a, b, w in zip(first, second, answer, strict=True)]


def batch_of(judge: Any, *overrides: str, scheme: str = "win_rate", functions: Any = None) -> tuple[Rollouts, Any]:
    values = {"rewards.pairwise.judge": judge, "rewards.pairwise.scheme": scheme}
    run = build(resolve(overrides=[*TINY, *overrides], values=values, functions=functions))
    run.metrics = {}
    batch = collect(run, 0, Clock())
    assert batch is not None
    return batch, run


def test_its_rewards_are_a_component_by_its_name() -> None:
    batch, run = batch_of(closer)
    assert set(batch["components"]) == {"closer"}, "the task's own reward is not used where a judge is named"
    assert torch.equal(batch["rewards"], batch["components"]["closer"]) and "correct" in batch
    for group in range(4):
        rows = (batch["groups"] == group).nonzero().squeeze(-1).tolist()
        assert batch["rewards"][rows].sum() == pytest.approx(len(rows) / 2)
        answer = batch.prompts[group].row["answer"]
        for i in rows:
            own = [closer([""], [batch.texts[i]], [batch.texts[j]], [answer])[0] for j in rows if j != i]
            assert batch["rewards"][i] == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in own) / 3)
    assert run.metrics["pairwise/verdicts"] == 4 * 6 and run.metrics["pairwise/failures"] == 0
    assert 0 < run.metrics["pairwise/ties"] < 24


def test_it_is_weighted_and_added_to_others() -> None:
    def brevity(completions: list[str]) -> list[float]:
        return [-float(len(c)) for c in completions]

    judge = {"fn": closer, "name": "taste", "weight": 2.0}
    batch, run = batch_of(judge, functions=[brevity])
    parts = batch["components"]
    assert torch.allclose(batch["rewards"], parts["brevity"] + 2 * parts["taste"])
    assert run.reward_weights == {"brevity": 1.0, "taste": 2.0}
    _, run = batch_of(judge, "rewards.weights.taste=0.5")
    assert run.reward_weights == {"taste": 0.5}


def silent_of_one_prompt(prompts: list[str], first: list[str], second: list[str]) -> list[float | None]:
    return [None if prompt == prompts[0] else 0.5 for prompt in prompts]


def test_a_group_it_has_nothing_to_say_of_leaves_the_batch() -> None:
    batch, run = batch_of(silent_of_one_prompt, "task.digits=4")
    assert len(batch) == 12 and run.metrics["pairwise/failures"] == 6 and run.metrics["pairwise/ties"] == 18
    with pytest.raises(RewardError, match="no reward function gave a value for any rollout"):
        batch_of(lambda first, second: [None] * len(first))


def test_a_task_without_a_reward_needs_no_other(tmp_path: Path) -> None:
    data = tmp_path / "open.jsonl"
    data.write_text("".join(f'{{"prompt": "say {n}"}}\n' for n in range(20)))
    model = "model={init: {layers: 1, width: 16, heads: 2, context: 32}}"
    contest = [f"rewards.pairwise.judge={EXAMPLES}:shorter", "rewards.pairwise.scheme=swiss"]
    run = build(resolve(overrides=[f"task={data}", model, "rollout.max_tokens=4", *contest]))
    run.metrics = {}
    batch = collect(run, 0, Clock())
    assert batch is not None and set(batch["components"]) == {"shorter"}


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"scheme": "win_rate"}, RecipeError, r"scheme=win_rate has no judge(.|\n)*judge\(prompts, first, second"),
        ({"judge": closer}, RecipeError, r"no scheme of who meets whom(.|\n)*anchor, (.|\n)*pref-grpo"),
        ({"judge": closer, "scheme": "swis"}, RecipeError, "unknown scheme 'swis'(.|\n)*did you mean 'swiss'"),
        ({"judge": closer, "scheme": {"swiss": {"round": 2}}}, RecipeError, "did you mean 'rounds'"),
        ({"judge": "closer", "scheme": "swiss"}, RecipeError, "names no function, got 'closer'(.|\n)*file.py:name"),
        ({"judge": {"fn": closer, "on_error": "zero"}, "scheme": "swiss"}, RecipeError, "a pair has no zero"),
        ({"judge": {"fn": closer, "wait": 3}, "scheme": "swiss"}, RecipeError, "a reward function is written"),
        ({"judge": closer, "scheme": "swiss", "rounds": 3}, RecipeError, "unknown key 'rewards.pairwise.rounds'"),
        ({"judge": f"{EXAMPLES}:shortr", "scheme": "swiss"}, RewardError, "did you mean 'shorter'"),
    ],
)
def test_what_a_recipe_may_not_say(values: dict[str, Any], error: type[CoterieError], message: str) -> None:
    with pytest.raises(error, match=message):
        build(resolve(overrides=TINY, values={f"rewards.pairwise.{k}": v for k, v in values.items()}))


def test_groups_of_one_have_nobody_to_meet() -> None:
    with pytest.raises(RecipeError, match=r"compares the rollouts of one prompt(.|\n)*rollout.group_size=8"):
        batch_of(closer, "rollout.group_size=1", "credit.baseline=raw_reward")


def test_two_names_that_are_one() -> None:
    with pytest.raises(RecipeError, match="two reward functions have one name: closer, closer"):
        batch_of(closer, functions=[{"fn": lambda completions: [0.0], "name": "closer"}])


def test_it_is_written_down_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    recipe = resolve(
        method="arena-rl",
        overrides=[*TINY, "rewards.pairwise.judge={fn: pairwise_judge.py:closer, timeout: 9}",
                   "rewards.pairwise.scheme.both_orders=false"],
    )  # fmt: skip
    written = recipe.to_dict()["rewards"]["pairwise"]
    assert written == {
        "judge": {"fn": f"{EXAMPLES}:closer", "timeout": 9},
        "scheme": {"single_elimination": {"both_orders": False, "neutral": 5.0}},
    }
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    again = resolve(file=tmp_path / "recipe.yaml")
    assert again.to_yaml() == recipe.to_yaml() and again.judge == recipe.judge
    assert "pairwise" not in resolve(overrides=TINY).to_yaml()


def test_the_plan_says_how_often_it_is_asked() -> None:
    from coterie.cli.plan import show_plan

    recipe = resolve(method="arena-rl", overrides=[*TINY, f"rewards.pairwise.judge={EXAMPLES}:closer"])
    said: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coterie.cli.plan.print_json", said.append)
        show_plan(recipe, True)
    assert said[0]["derived"]["pairwise judge"].startswith("closer, single_elimination(")
    assert said[0]["derived"]["pairwise judge"].endswith(f": {4 * 2 * (2 * 4 - 2)} verdicts an update")
