"""Agent0-VL: a policy that judges its own steps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import agent0_vl as oracle
from oracles.gate import accumulated
from oracles.group_norm import group_norm as z

from coterie.credit import group_norm
from coterie.environments import Episode, Step
from coterie.environments.base import RAN
from coterie.environments.scripted import played
from coterie.environments.self_verified import SelfVerified, outcome, repairs, steps, verdict
from coterie.rewards.shaping import gate
from coterie.tasks import calculator
from coterie.tasks.base import validate

tenths = st.integers(0, 10).map(lambda n: n / 10)
judged = st.tuples(st.sampled_from([0.0, 1.0]), st.integers(-10, 10).map(lambda n: n / 10), tenths)
episodes = st.lists(judged, min_size=1, max_size=5)


class Given:
    """Steps with these tool rewards, the last of which pays `won`."""

    def __init__(self, tools: Sequence[float], won: float) -> None:
        self.tools, self.won = tools, won

    def reset(self, row: Any) -> str:
        self.at = 0
        return "begun"

    def step(self, action: str) -> Step:
        self.at += 1
        last = self.at == len(self.tools)
        return Step(f"<{action}>", self.won * last, last, {RAN: bool(self.tools[self.at - 1]), "success": last})


def play(rows: Sequence[tuple[float, float, float]], won: float, **settings: float) -> tuple[Episode, list[Step]]:
    """An episode in which the verifier says these scores and confidences."""

    async def run() -> list[Step]:
        world = SelfVerified(lambda: Given([r[0] for r in rows], won), **settings)
        assert await world.reset({}) == "begun"
        out = []
        for i, (_, score, sure) in enumerate(rows):
            out += [await world.step(f"s{i}"), await world.step(f"{score:+.1f},{sure:.1f}")]
        return out

    seen = asyncio.run(run())
    return Episode([s.reward for s in seen], infos=[s.info for s in seen], done=seen[-1].done), seen


@pytest.mark.oracle("agent0-vl")
@given(episodes, st.floats(-2, 2), st.floats(0, 1), tenths)
def test_returns_against_the_oracle(
    rows: list[tuple[float, float, float]], won: float, gamma: float, below: float
) -> None:
    episode, seen = play(rows, won, gamma=gamma, below=below, repair=0.5)
    worth, mended = oracle.process(rows, gamma=gamma, tau=below, cost=0.5)
    assert steps([""], [episode]) == [pytest.approx(worth, abs=1e-12)]
    assert outcome([""], [episode]) == [won] and repairs([""], [episode]) == [mended]
    whole = oracle.whole(won, rows, alpha=1.0, gamma=gamma, tau=below, cost=0.5)
    assert episode.total == pytest.approx(whole, abs=1e-12)
    assert [s.done for s in seen] == [False] * (2 * len(rows) - 1) + [True] and episode.success
    assert [s.observation for s in seen[::2]] == [f"<s{i}>v" for i in range(len(rows))]
    assert [s.observation for s in seen[1::2]] == ["r>" if sure < below else ">" for _, _, sure in rows]


@pytest.mark.oracle("agent0-vl")
def test_numbers_of_the_source() -> None:
    assert play([(1, 1, 1), (1, 1, 1)], 1.0, tool=0.5, repair=0.0)[0].total == pytest.approx(3.985)
    unsure, _ = play([(0, 0, 0)], 0.0, steepness=10.0, repair=0.2)
    assert unsure.total == pytest.approx(-0.1998, abs=5e-5) and repairs([""], [unsure]) == [1.0]
    right, wrong, modest = (play([(1, s, c)], w)[0].total for s, c, w in ((1, 1, 1), (1, 1, 0), (-1, 0.9, 0)))
    assert right > wrong > modest  # a wrong step that is praised beats one that is owned up to: why outcomes must count
    rewards = torch.tensor([right, wrong, modest], dtype=torch.float64)
    want = z(rewards.numpy(), np.zeros(3, dtype=int))
    np.testing.assert_allclose(group_norm(rewards, torch.zeros(3, dtype=torch.long)), want, rtol=1e-12)


@pytest.mark.reduction("agent0-vl")
@given(st.lists(st.tuples(episodes, st.sampled_from([0.0, 1.0])), min_size=2, max_size=6))
def test_a_verifier_without_an_opinion_leaves_grpo_of_the_outcome(
    group: list[tuple[list[tuple[float, float, float]], float]],
) -> None:
    silent = [play([(t, 0.0, s) for t, _, s in rows], won, tool=0.0, repair=0.0)[0].total for rows, won in group]
    assert silent == [won for _, won in group]
    same = torch.zeros(len(group), dtype=torch.long)
    won = torch.tensor([w for _, w in group], dtype=torch.float64)
    torch.testing.assert_close(group_norm(torch.tensor(silent, dtype=torch.float64), same), group_norm(won, same))


@pytest.mark.reduction("agent0-vl")
@given(st.lists(st.tuples(episodes, st.sampled_from([0.0, 1.0])), min_size=1, max_size=6))
def test_behind_a_gate_verdicts_count_where_the_outcome_is_good(
    group: list[tuple[list[tuple[float, float, float]], float]],
) -> None:
    """agent0-vl+g-ra, by the names that both pages use."""
    each = [play(rows, won)[0] for rows, won in group]
    parts = {n: torch.tensor(f([""] * len(each), each), dtype=torch.float64)
             for n, f in (("outcome", outcome), ("steps", steps))}  # fmt: skip
    got = gate(parts["outcome"] + parts["steps"], parts, dict.fromkeys(parts, 1.0), gated=("steps",), by="outcome")
    want = accumulated([won for _, won in group], [[oracle.process(rows)[0]] for rows, _ in group], 1.0)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-12)


def test_verdicts() -> None:
    assert verdict("+1,0.9") == (1.0, 0.9) and verdict(" -0.5,1 ") == (-0.5, 1.0)
    for said in ("", "1,1", "+1", "+2,1", "+1,1.5", "+1,-1", "+nan,1", "+1,1,1", "+1e9,1", "+10,1"):
        assert verdict(said) == (0.0, 0.0), said


def test_conversations_and_worlds_that_wait() -> None:
    class Slow:
        async def reset(self, row: Any) -> None:
            return None

        async def step(self, action: str) -> Step:
            return Step({"role": "tool", "content": "4"}, 0.5)

    async def run() -> list[Any]:
        world = SelfVerified(Slow)
        await world.reset({})
        return [await world.step("2+2"), await world.step("+1,1"), await world.step("again")]

    said, judged, again = asyncio.run(run())
    assert said.observation == again.observation == {"role": "tool", "content": "4v"} and said.reward == 0
    assert judged.reward == 1.5 and not judged.done


def test_episodes_that_failed_have_no_reward() -> None:
    broken = Episode(failed="it hung")
    assert outcome([""], [broken]) == steps([""], [broken]) == repairs([""], [broken]) == [None]


def test_the_calculator_with_verdicts() -> None:
    task = calculator(train=3, held_out=2, verifies=True)
    assert validate(task, limit=1).ok and task.world is not None and task.script is not None
    episode = played(task.world, task.train[0], task.script)
    said = "".join([task.train[0]["prompt"], *episode.actions, *map(str, episode.observations)])
    assert set(said) <= set(task.vocabulary or "") and episode.success and episode.turns == 4
    assert outcome([""], [episode]) == [1.0]
    assert steps([""], [episode]) == [pytest.approx(oracle.process([(1, 1, 1), (0, 1, 1)])[0])]
