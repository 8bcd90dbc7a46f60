from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.curriculum import prioritized
from coterie.recipe import resolve
from tests.e2e.conftest import TINY


def taught(rates: list[float], visits: int = 4000, **settings: float) -> prioritized:
    """A curriculum that has seen so many outcomes of each prompt."""
    piece = prioritized(**settings)
    for index, rate in enumerate(rates):
        won = torch.arange(visits) < round(rate * visits)
        piece.observe(torch.full((visits,), index), won.float(), won)
    return piece


@pytest.mark.oracle("spo-single")
def test_prompts_come_with_the_weight_of_the_formula() -> None:
    rates = [0.5, 0.9, 0.1, 1.0, 0.0]
    piece = taught(rates, keep=1.0)
    draws = 4000
    found = Counter(piece(5, 1, seed=1)[0] for _ in range(draws))
    weights = [(v * (1 - v)) ** 0.5 + 0.05 for v in rates]
    for index, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(found[index] / draws - share) < 4 * (share / draws) ** 0.5 + 0.005


def test_no_prompt_twice_while_there_are_others() -> None:
    piece = prioritized()
    assert sorted(piece(6, 6, seed=0)) == list(range(6))
    assert Counter(piece(3, 7, seed=0)).most_common()[0][1] == 3
    assert len(set(piece(50, 20, seed=0))) == 20


def test_new_prompts_go_before_solved_ones() -> None:
    piece = taught([1.0] * 10, explore=0.0)
    assert set(piece(20, 10, seed=3)) == set(range(10, 20))


def test_rewards_count_where_there_is_no_verdict() -> None:
    piece = prioritized(keep=1.0)
    piece.observe(torch.tensor([0, 0, 1, -1]), torch.tensor([0.5, 7.0, -3.0, 1.0]), None)
    assert piece.tracker.memory.prompts.tolist() == [-1, 0, 1]
    assert piece.tracker.memory.values[1:].tolist() == [[2.0, 1.0], [0.5, 1.5]]


def test_the_same_draws_after_a_stop() -> None:
    one, two = taught([0.5, 0.2, 0.9]), prioritized()
    one(3, 1, seed=5)
    two.load_state_dict(one.state_dict())
    assert [one(3, 2, seed=5) for _ in range(9)] == [two(3, 2, seed=5) for _ in range(9)]
    assert [one(3, 2, seed=5) for _ in range(9)] != [two(3, 2, seed=6) for _ in range(9)]


def test_the_loop_tells_it_the_verdicts_and_its_memory_is_in_the_checkpoint(tmp_path: Path) -> None:
    recipe = resolve(overrides=[*TINY, "task.dense=true", "draw.curriculum=prioritized"])
    run = build(recipe)
    batch = collect(run, 0, Clock())
    assert batch is not None
    memory = run.curriculum.instance.tracker.memory
    assert memory.prompts[1:].tolist() == sorted(p.index for p in batch.prompts)
    for prompt, (won, lost) in zip(memory.prompts[1:].tolist(), memory.values[1:].tolist(), strict=True):
        mine = batch["correct"][batch["prompt_index"] == prompt]
        assert won == pytest.approx(0.48 + float(mine.sum())) and lost == pytest.approx(0.48 + float((~mine).sum()))
    run.save(tmp_path / "checkpoint")
    again = build(resolve(overrides=[*TINY, "task.dense=true", "draw.curriculum=prioritized"]), tmp_path / "checkpoint")
    assert again.curriculum.instance.draws == 1
    assert torch.equal(again.curriculum.instance.tracker.memory.values, memory.values)
