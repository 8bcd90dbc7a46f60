from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.dcpo_distribution import dcpo as oracle
from oracles.dcpo_distribution import surprise, temperature

from coterie.api import start
from coterie.build import build
from coterie.clock import Clock
from coterie.credit import distribution_centric
from coterie.metrics import Collector, collect
from coterie.provide import provide
from coterie.recipe import resolve
from coterie.rollouts import Sampling
from tests.e2e.conftest import TINY

NAMES = ("advantages", "correct", "logp_tempered", "logp_old", "mask")


@pytest.mark.oracle("dcpo-distribution")
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_four_batches_against_the_oracle(kind: str, wide: bool) -> None:
    piece, last = distribution_centric(target=0.9, cap=0.2), None
    for seed in range(4):
        n = inputs.table(kind, seed)
        if wide:
            n["advantages"] = np.random.default_rng(seed).standard_normal(n["mask"].shape)
        assert piece.temperature == temperature(last, 0.9)
        want = oracle(*(n[c] for c in NAMES), last, target=0.9, cap=0.2)
        t = inputs.tensors(n)
        t |= {c: inputs.garbage(c, t[c], t["mask"]) for c in NAMES}
        np.testing.assert_allclose(piece(*(t[c] for c in NAMES)).numpy(), want, rtol=1e-9, atol=1e-12)
        last = surprise(n["logp_old"], n["mask"])
        assert piece.mean == pytest.approx(last)


def one(advantages: list[float], correct: list[bool], rho: float, old: float = -1.0) -> tuple[Any, ...]:
    before = torch.full((len(correct), 1), old, dtype=torch.float64)
    a = torch.tensor(advantages, dtype=torch.float64)
    return a, torch.tensor(correct), before + math.log(rho), before, torch.ones_like(before) > 0


@pytest.mark.oracle("dcpo-distribution")
def test_numbers_of_the_source() -> None:
    piece = distribution_centric()
    piece.load_state_dict({"mean": 0.45})
    with collect(seen := Collector()):
        got = piece(*one([1.0, -1.0], [True, False], math.exp(0.1)))
    np.testing.assert_allclose(got[:, 0], [1.009561, -0.909091], atol=1e-6)
    assert seen.means() == {"dcpo/alpha": pytest.approx(1 / 11), "dcpo/temperature": 1.2, "dcpo/surprise": 1.0}
    assert piece.temperature == 0.8 and piece.state_dict() == {"mean": 1.0}


def test_nobody_right_is_grpo_and_all_right_are_still_learned_from() -> None:
    piece = distribution_centric()
    for _ in range(2):
        assert piece(*one([1.0, -1.0], [False, False], 2.0)).squeeze(-1).tolist() == [1.0, -1.0]
    assert (piece(*one([0.0, 0.0], [True, True], 2.0)) > 0).all()


def test_extremes_are_finite() -> None:
    piece = distribution_centric()
    piece.mean = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        a, correct, tempered, old, mask = one([1.0, -1.0], [True, True], 1.0, -14.0)
        found = piece(a.to(dtype), correct, (tempered * 4).to(dtype), old.to(dtype), mask)
        assert found.isfinite().all() and found.dtype == dtype
    assert piece(*(x[:, :0] if x.dim() == 2 else x for x in one([1.0], [True], 1.0))).shape == (1, 0)


@pytest.mark.reduction("dcpo-distribution")
@given(st.integers(0, 10_000), st.floats(0.1, 2))
def test_at_the_target_it_is_grpo(seed: int, mean: float) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    piece = distribution_centric(target=mean)
    piece.mean = mean
    want = torch.where(t["mask"], t["advantages"].unsqueeze(-1), 0.0)
    assert torch.equal(piece(*(t[c] for c in NAMES)), want)


def test_through_the_loop_it_is_made_at_its_temperature_and_remembers(tmp_path: Path) -> None:
    recipe = resolve(method="dcpo-distribution", overrides=[*TINY, "task.dense=true", "steps=3", "checkpoint.every=3"])
    rows = start(recipe, tmp_path / "run", quiet=True).metrics
    surprises = [row["dcpo/surprise"] for row in rows[1:]]
    assert [row["dcpo/temperature"] for row in rows[1:]] == [temperature(h) for h in (None, *surprises[:2])]
    run = build(recipe, tmp_path / "run/checkpoints/step-000003")
    piece = run.stateful()["credit.modifiers=distribution_centric"].instance
    assert piece.mean == pytest.approx(surprises[-1])

    rollouts = run.policy.rollout([run.prompt(0)], [[1, 2, 3, 4]], Sampling(temperature=2.0, max_tokens=4))
    rollouts = rollouts.with_columns(rewards=torch.zeros(4))
    piece.mean = 9.0
    run.recipe.chain["credit.modifiers"][0].settings["cold"] = 0.5
    found = provide(run, rollouts, "credit", 0, Clock())["logp_tempered"]
    want = run.policy.score(replace(rollouts, sampling=Sampling(max_tokens=4)))["logp"]
    assert torch.allclose(found, want, atol=1e-5) and not torch.allclose(found, rollouts["logp_old"], atol=1e-3)
