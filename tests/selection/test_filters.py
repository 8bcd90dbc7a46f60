from __future__ import annotations

import pytest
import torch
from oracles import inputs
from oracles.dynamic_sampling import dynamic_sampling as oracle

from coterie.errors import RewardError
from coterie.selection import drop_truncated, dynamic_sampling


@pytest.mark.oracle("dapo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dynamic_sampling_against_the_oracle(kind: str, dtype: torch.dtype) -> None:
    for seed in range(5):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n, dtype)
        for metric, value in (("auto", "correct"), ("correct", "correct"), ("rewards", "rewards")):
            got = dynamic_sampling(t["rewards"], t["groups"], t["correct"], metric=metric)
            assert got.tolist() == oracle(n[value], n["groups"])
        assert dynamic_sampling(t["rewards"], t["groups"]).tolist() == oracle(n["rewards"], n["groups"])


def test_all_correct_goes_even_when_a_length_penalty_makes_rewards_differ() -> None:
    rewards, groups = torch.tensor([1.0, 0.5, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    correct = torch.tensor([True, True, True, False])
    assert dynamic_sampling(rewards, groups, correct).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert dynamic_sampling(rewards, groups, correct, metric="rewards").tolist() == [1.0, 1.0, 1.0, 1.0]


def test_all_wrong_goes() -> None:
    correct = torch.tensor([False, False, False, True])
    assert dynamic_sampling(torch.zeros(4), torch.tensor([0, 0, 1, 1]), correct).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_metric_correct_needs_a_verifier() -> None:
    with pytest.raises(RewardError, match="no verifier"):
        dynamic_sampling(torch.zeros(2), torch.zeros(2, dtype=torch.long), metric="correct")


@pytest.mark.oracle("overlong-filtering")
def test_drop_truncated() -> None:
    truncated = torch.tensor([True, False, False])
    assert drop_truncated(truncated, torch.tensor([1.0, 0.5, 0.0])).tolist() == [0.0, 0.5, 0.0]
    wide = torch.tensor([[1.0, 1.0], [0.5, 0.0], [1.0, 2.0]])
    assert drop_truncated(truncated, wide).tolist() == [[0.0, 0.0], [0.5, 0.0], [1.0, 2.0]]
    assert drop_truncated(torch.ones(2, dtype=torch.bool), torch.ones(2)).tolist() == [0.0, 0.0]
