from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.seed_grpo import factors

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.credit import group_norm, semantic_entropy
from coterie.recipe import resolve

TINY = [
    "task={sort: {digits: 2, train: 40, held_out: 12}}",
    "model={init: {layers: 1, width: 16, heads: 2, context: 32}}",
    "threads=1", "draw.prompts=4", "rollout.group_size=4", "rollout.max_tokens=1",
]  # fmt: skip


@pytest.mark.oracle("seed-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"form": "exp", "alpha": 2.0}, {"form": "focal", "gamma": 3.0, "alpha": 1.0}])
def test_against_the_oracle(kind: str, settings: dict[str, object]) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        want = np.array(factors(n["groups"], n["answers"], **settings))
        wide = torch.randn(t["mask"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for advantages in (wide[:, 0], wide):
            got = semantic_entropy(advantages, t["groups"], t["answers"], **settings)
            scale = want if advantages.dim() == 1 else want[:, None]
            np.testing.assert_allclose(got.numpy(), advantages.numpy() * scale, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("seed-grpo")
def test_numbers_of_the_source() -> None:
    groups, answers = torch.zeros(4, dtype=torch.long), torch.tensor([5, 7, 7, 2])
    advantages = group_norm(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), groups, scale="none")
    got = semantic_entropy(advantages, groups, answers, alpha=1.0)
    np.testing.assert_allclose(got.numpy(), [0.125, *[-0.041667] * 3], atol=1e-6)
    nothing = semantic_entropy(advantages, groups, torch.arange(4), alpha=1.0)
    np.testing.assert_allclose(nothing.numpy(), 0, atol=1e-15)


@pytest.mark.reduction("seed-grpo")
@given(st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=14))
def test_without_alpha_or_doubt_it_changes_nothing(rows: list[tuple[float, int, int]]) -> None:
    advantages = torch.tensor([a for a, _, _ in rows], dtype=torch.float64)
    groups, answers = torch.tensor([g for _, g, _ in rows]), torch.tensor([k for _, _, k in rows])
    assert torch.equal(semantic_entropy(advantages, groups, answers, alpha=0.0), advantages)
    torch.testing.assert_close(semantic_entropy(advantages, groups, groups), advantages)


def test_the_answers_of_a_batch_are_numbered_by_what_they_say() -> None:
    run = build(resolve(method="seed-grpo", overrides=TINY))
    run.metrics = {}
    batch = collect(run, 0, Clock())
    assert batch is not None and len({*batch.texts}) > 2
    for a, x in enumerate(batch.texts):
        for b, y in enumerate(batch.texts):
            same = x.strip() == y.strip() and (bool(x.strip()) or a == b)
            assert (batch["answers"][a] == batch["answers"][b]) == same
