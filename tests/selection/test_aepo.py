from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.aepo import batch as oracle
from oracles.dcpo_distribution import temperature

from coterie.api import start
from coterie.build import build
from coterie.credit import tempered_reinforce
from coterie.metrics import Collector, collect
from coterie.recipe import resolve
from coterie.rollout.strategies.tempered_extra import tempered_extra
from coterie.rollouts import Sampling
from coterie.selection import swap_tempered
from coterie.streams import stream
from tests.e2e.conftest import TINY


def made(advantages: torch.Tensor, heat: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(len(heat), 2, dtype=torch.bool)
    a = tempered_reinforce(advantages, heat, mask)
    return a, swap_tempered(a, heat, mask, torch.ones_like(heat), share=share)


def check(advantages: torch.Tensor, heat: torch.Tensor, share: float) -> None:
    a, weights = made(advantages, heat, share)
    want = oracle(advantages.tolist(), heat.tolist(), share)
    assert {i for i, _ in want} == set(weights.nonzero().squeeze(-1).tolist())
    np.testing.assert_allclose([float(a[i]) for i, _ in want], [x for _, x in want])
    assert int((weights != 0).sum()) == int((heat == 1).sum())


@pytest.mark.oracle("aepo-arbitrary-entropy")
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_the_batch_against_the_oracle(kind: str, cold: bool, share: float) -> None:
    for seed in range(3):
        t = inputs.tensors(inputs.table(kind, seed))
        check(t["advantages"], torch.where(t["heat"] > 1, 0.8 if cold else 1.2, 1.0).double(), share)


@pytest.mark.oracle("aepo-arbitrary-entropy")
def test_numbers_of_the_source() -> None:
    a = torch.tensor([0.5, -0.5, 0.5, -0.5, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    heat = torch.tensor([1.0] * 4 + [1.2] * 4, dtype=torch.float64)
    with collect(seen := Collector()):
        credited, weights = made(a, heat, 0.5)
    assert credited[weights > 0].tolist() == [0.5, -0.5, 1.0, 1.0]
    assert weights.tolist() == [0, 0, 1, 1, 1, 0, 1, 0]
    assert seen.means() == {"aepo/good_share": 0.5, "aepo/swapped_share": 0.25}


def test_an_advantage_a_decision_counts_by_its_mean() -> None:
    a = torch.tensor([[1.0, -3.0], [1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    heat, mask = torch.tensor([1.2, 1.2, 1.0]).double(), torch.ones(3, 2, dtype=torch.bool)
    got = tempered_reinforce(a, heat, mask)
    assert got.tolist() == [[0, 0], [1, 1], [-1, 1]]
    weights = torch.ones(3, 2, dtype=torch.float64)
    assert swap_tempered(got, heat, mask, weights, share=1.0).tolist() == [[0, 0], [1, 1], [0, 0]]


@pytest.mark.reduction("aepo-arbitrary-entropy")
@given(st.integers(0, 10_000), st.booleans())
def test_with_nothing_to_swap_it_is_grpo(seed: int, none_good: bool) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    a, heat = t["advantages"], t["heat"]
    a = torch.where((heat != 1) & none_good, -a.abs(), a)
    credited, weights = made(a, heat, 1.0 if none_good else 0.0)
    assert torch.equal(weights, (heat == 1).double()) and torch.equal(credited[heat == 1], a[heat == 1])


def test_the_second_groups_and_their_log_probs() -> None:
    run = build(resolve(method="aepo-arbitrary-entropy", overrides=TINY))
    prompts = [run.prompt(i) for i in range(4)]
    seeds, sampling = [[10 * i + k for k in range(3)] for i in range(4)], Sampling(max_tokens=4)
    piece = tempered_extra(share=0.5, target=0.1)
    plain = run.policy.rollout(prompts, seeds, sampling, entropy=True)
    first = piece(run.policy, prompts, seeds, sampling, True)
    assert first["heat"].tolist() == [1.0] * 12 + [pytest.approx(1.2)] * 6
    assert [p.index for p in first.prompts] == [*(p.index for p in prompts), prompts[0].index, prompts[1].index]
    assert first["groups"].tolist()[12:] == [4] * 3 + [5] * 3 and first.texts[:12] == plain.texts
    assert first.sampling == sampling and piece.mean > 0.1
    scored = run.policy.score(first, {"logp", "entropy"})
    for column, name in (("logp_old", "logp"), ("entropy_old", "entropy")):
        assert torch.allclose(first[column], scored[name], atol=1e-5)
    spec = replace(sampling, temperature=0.8)
    second = piece(run.policy, prompts, seeds, sampling, False)
    assert second["heat"].unique().tolist() == [pytest.approx(0.8), 1.0] and "entropy_old" not in second
    drawn = run.policy.rollout(prompts[:2], [[stream(s, "tempered") for s in own] for own in seeds[:2]], spec)
    assert second.texts[12:] == drawn.texts
    nothing = tempered_extra(share=0.0)(run.policy, prompts, seeds, sampling, True)
    assert nothing.texts == plain.texts and (nothing["heat"] == 1).all()


def test_through_the_loop_it_steers_by_the_last_batch(tmp_path: Path) -> None:
    overrides: list[Any] = [
        *TINY,
        "task.dense=true",
        "steps=3",
        "checkpoint.every=3",
        "rollout.group_size=8",
        "draw.prompts=8",
    ]
    recipe = resolve(
        method="aepo-arbitrary-entropy", overrides=[*overrides, "selection.weights.swap_tempered.share=0.25"]
    )
    rows = start(recipe, tmp_path / "run", quiet=True).metrics[1:]
    surprises = [row["aepo/surprise"] for row in rows]
    assert [row["aepo/temperature"] for row in rows] == [temperature(h) for h in (None, *surprises[:2])]
    assert any(row["aepo/swapped_share"] > 0 for row in rows)
    run = build(recipe, tmp_path / "run/checkpoints/step-000003")
    assert run.strategy.instance.mean == pytest.approx(surprises[-1])
