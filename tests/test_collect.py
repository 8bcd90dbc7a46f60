"""Drawing, scoring and filtering on a real (tiny) policy, with rewards and filters of our own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect, roll_out, select_groups
from coterie.errors import RewardError
from coterie.grading import score
from coterie.recipe import resolve
from coterie.run import Run
from tests.e2e.conftest import TINY


def make(*overrides: str, functions: list[Any] | None = None, method: str = "grpo") -> Run:
    run = build(resolve(method=method, overrides=[*TINY, *overrides], functions=functions))
    run.metrics = {}
    return run


def lengths(completions: list[str], **columns: object) -> list[float]:
    return [float(len(c)) for c in completions]


def test_a_batch_is_prompts_times_group_size_and_seeds_are_keyed() -> None:
    a, b, c = (collect(make("task.dense=true"), step, Clock()) for step in (0, 0, 1))
    assert a is not None and b is not None and c is not None
    assert len(a) == 16 and a["groups"].tolist() == sorted([0, 1, 2, 3] * 4)
    assert torch.equal(a["tokens"], b["tokens"]) and a.texts != c.texts
    assert len({*a.texts}) > 4, "the rollouts of a group differ"


def test_prompts_are_drawn_without_repetition_until_all_have_been_seen() -> None:
    run = make("task.dense=true", "task.train=8")
    seen = []
    for step in range(4):
        batch = collect(run, step, Clock())
        assert batch is not None
        seen.append([p.index for p in batch.prompts])
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(8))


def test_components_are_kept_and_weighted() -> None:
    def ones(completions: list[str], **columns: object) -> list[float]:
        return [1.0] * len(completions)

    batch = collect(make("rewards.weights={lengths: 0.5, ones: -2}", functions=[lengths, ones]), 0, Clock())
    assert batch is not None
    assert set(batch.columns["components"]) == {"lengths", "ones"}
    want = torch.tensor([0.5 * len(t) - 2.0 for t in batch.texts])
    torch.testing.assert_close(batch["rewards"], want)


def test_a_function_that_abstains_is_left_out_of_the_sum_and_a_rollout_without_any_reward_of_the_table() -> None:
    def half(completions: list[str], **columns: object) -> list[float | None]:
        return [1.0 if i % 2 else None for i in range(len(completions))]

    def rare(completions: list[str], **columns: object) -> list[float | None]:
        return [3.0 if i % 4 == 0 else None for i in range(len(completions))]

    run = make(functions=[half, rare])
    batch = collect(run, 0, Clock())
    assert batch is not None
    assert batch["rewards"].tolist() == [3.0, 1.0, 1.0] * 4, "of four, the third had no reward from anyone"
    assert run.metrics["reward/nones"] == 8 + 12
    assert len(batch.texts) == len(batch) == 12


def test_a_group_without_any_reward_is_no_group() -> None:
    def first_prompt_only(completions: list[str], **columns: object) -> list[float | None]:
        return [float(i) if i < 4 else None for i in range(len(completions))]

    run = make(functions=[first_prompt_only])
    batch = collect(run, 0, Clock())
    assert batch is not None and batch["rewards"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert not batch["groups"].any()


def test_nobody_gives_a_reward() -> None:
    with pytest.raises(RewardError, match="no reward function gave a value for any rollout"):
        collect(make(functions=[lambda completions, **columns: [None] * len(completions)]), 0, Clock())


def filtering(tmp_path: Path, name: str, columns: str, returns: str) -> str:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom coterie.pieces import filter\n"
        f"@filter()\ndef {name}({columns}, *, max_rounds: int = 1):\n    return {returns}\n"
    )
    return f"'{tmp_path}/mine.py:{name}'"


def test_a_filter_may_read_the_step_the_budget_and_the_policys_entropy(tmp_path: Path) -> None:
    returns = "(entropy.sum(-1) > 0) & (lengths <= budget) & (step == 0)"
    piece = filtering(tmp_path, "knowing", "rewards, entropy, lengths, budget, step", returns)
    run = make(f"selection.filters=[{piece}]")
    batch = collect(run, 0, Clock())
    assert batch is not None and len(batch) == 16
    assert "entropy" not in batch, "what the policy said while filtering is not taken for what it says in the update"
    assert collect(run, 1, Clock()) is None


@pytest.mark.parametrize(("rounds", "drawn"), [("1", [4, 4]), ("3", [12, 12]), ("{from: 1, to: 2, over: 1}", [4, 8])])
def test_rounds_are_capped_and_may_be_scheduled(tmp_path: Path, rounds: str, drawn: list[int]) -> None:
    name = f"none_{sum(drawn)}"
    piece = filtering(tmp_path, name, "rewards", "torch.zeros_like(rewards)")
    run = make(f"selection.filters=[{{{piece}: {{max_rounds: {rounds}}}}}]")
    for step in (0, 1):
        assert collect(run, step, Clock()) is None
        assert run.metrics["groups/drawn"] == run.metrics["groups/dropped"] == drawn[step]


def test_a_filter_that_keeps_one_group_a_round_fills_the_batch(tmp_path: Path) -> None:
    piece = filtering(tmp_path, "first_group", "rewards, groups", "(groups == 0).float()")
    run = make(f"selection.filters=[{{{piece}: {{max_rounds: 9}}}}]")
    batch = collect(run, 0, Clock())
    assert batch is not None and len(batch.prompts) == 4 and batch["groups"].tolist() == sorted([0, 1, 2, 3] * 4)
    assert run.metrics["groups/drawn"] == 4 + 3 + 2 + 1 and run.metrics["groups/dropped"] == 6
    assert run.seen is not None and len(run.seen.prompts) == 10, "metrics describe all that was rolled out"
    rows = [batch.prompts[g].row["prompt"] for g in batch["groups"].tolist()]
    assert len(set(rows)) == 4


def test_select_groups_renumbers_and_forgets() -> None:
    batch = collect(make("task.dense=true"), 0, Clock())
    assert batch is not None
    keep = torch.isin(batch["groups"], torch.tensor([1, 3]))
    out = select_groups(batch, keep)
    assert out["groups"].tolist() == [0] * 4 + [1] * 4 and [p.index for p in out.prompts] == [
        batch.prompts[i].index for i in (1, 3)
    ]
    assert out.texts == [t for t, k in zip(batch.texts, keep.tolist(), strict=True) if k]


def test_shaping_of_scalars_and_of_decisions_add_up() -> None:
    """Soft overlong punishment and a KL penalty together: the scalar reward is the sum over decisions."""
    run = make("rewards.shaping=[{soft_overlong: {cache: 4}}, {kl_reward: {coef: 0.5}}]", functions=[lengths])
    with torch.no_grad():
        run.reference()
        for p in run.policy.trainable_parameters():
            p.mul_(1.5)
    batch = collect(run, 0, Clock())
    assert batch is not None
    torch.testing.assert_close(batch["token_rewards"].sum(-1), batch["rewards"])
    penalty = 0.5 * (batch["logp_old"] - batch["logp_ref"]) * batch["mask"]
    assert penalty.abs().max() > 1e-4
    own = batch["rewards"] + penalty.sum(-1)
    late = batch["lengths"] / 4  # the budget is 4 and its last stretch, over which the punishment grows, all of it
    torch.testing.assert_close(own, torch.tensor([float(len(t)) for t in batch.texts]) - late, atol=1e-5, rtol=1e-5)


def test_asynchronous_functions_and_messages(tmp_path: Path) -> None:
    async def later(completions: list[str], answer: list[str], **columns: object) -> list[float]:
        return [float(a in c) + len(c) for a, c in zip(answer, completions, strict=True)]

    batch = collect(make(functions=[later]), 0, Clock())
    assert batch is not None and all(math.isfinite(r) and r >= 0 for r in batch["rewards"].tolist())


def test_verdicts_are_asked_for_while_others_are_still_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier in a process of its own is asked before the last rollout has ended; the grades are the same."""
    run = make("rollout.max_tokens=16", "rewards.functions=[{fn: exact, timeout: 20}]")
    grades = []
    for early in (True, False):
        if not early:
            run.rewards.ahead.functions = []
        steps: list[int] = []
        asked: list[int] = []
        step, ask = run.policy.engine.decoder.step, run.rewards.ahead.ask
        monkeypatch.setattr(
            run.policy.engine.decoder, "step", lambda s, t, f=step, log=steps: (log.append(1), f(s, t))[1]
        )
        monkeypatch.setattr(
            run.rewards.ahead, "ask", lambda *a, f=ask, log=asked, at=steps: (log.append(len(at)), f(*a))[1]
        )
        batch = score(run, roll_out(run, 0, 0, 4, Clock()), 0, 0, Clock())
        grades.append(batch["rewards"])
        assert bool(asked) == early
        if early:
            assert min(asked) < len(steps)  # the first was asked for before the last token
        monkeypatch.undo()
    run.rewards.close()
    assert torch.equal(*grades)
