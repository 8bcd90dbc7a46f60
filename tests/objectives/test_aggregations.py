from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.aggregations import coefficients

from coterie.objectives.aggregations import constant, sequence, token

CASES = [("token", "batch"), ("token", "group"), ("sequence", "batch"), ("sequence", "group"), ("constant", "batch")]


def run(name: str, scope: Any, t: dict[str, Any], length: int | None = None) -> torch.Tensor:
    if name == "constant":
        return constant(t["weights"], t["mask"], t["budget"], length=length)
    return {"token": token, "sequence": sequence}[name](t["weights"], t["mask"], t["groups"], scope=scope)


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize(("name", "scope"), CASES)
@pytest.mark.parametrize("level", ["rollout", "decision"])
def test_against_the_oracle(kind: str, name: str, scope: str, level: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        if level == "decision":
            n["weights"] = np.random.default_rng(seed).choice([0.0, 1.0, 0.25], n["mask"].shape)
        want = coefficients(name, n["weights"], n["mask"], n["groups"], scope, inputs.BUDGET)
        np.testing.assert_allclose(run(name, scope, inputs.tensors(n)).numpy(), want, rtol=1e-12, atol=0)


def two_rows(*, weights: Any = (1.0, 1.0)) -> dict[str, Any]:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    weights = torch.tensor(weights, dtype=torch.float64)
    return {"weights": weights, "mask": mask, "groups": torch.tensor([0, 1]), "budget": 5}


class TestByHand:
    def test_token(self) -> None:
        assert run("token", "batch", two_rows()).tolist() == [[0.25] * 3, [0.25, 0, 0]]

    def test_token_within_groups(self) -> None:
        np.testing.assert_allclose(run("token", "group", two_rows()), [[1 / 6] * 3, [0.5, 0, 0]])

    def test_sequence(self) -> None:
        np.testing.assert_allclose(run("sequence", "batch", two_rows()), [[1 / 6] * 3, [0.5, 0, 0]])

    def test_sequence_within_groups_of_different_size(self) -> None:
        t = two_rows() | {"mask": torch.ones(3, 1, dtype=torch.bool), "groups": torch.tensor([0, 1, 1])}
        t["weights"] = torch.ones(3, dtype=torch.float64)
        np.testing.assert_allclose(run("sequence", "group", t), [[0.5], [0.25], [0.25]])

    def test_constant_uses_the_budget_not_the_width(self) -> None:
        np.testing.assert_allclose(run("constant", "batch", two_rows()), [[0.1] * 3, [0.1, 0, 0]])
        np.testing.assert_allclose(run("constant", "batch", two_rows(), length=1), [[0.5] * 3, [0.5, 0, 0]])

    @pytest.mark.reduction("overlong-filtering")
    @pytest.mark.parametrize(("name", "scope"), CASES)
    def test_a_dropped_rollout_leaves_the_denominator_too(self, name: str, scope: str) -> None:
        alone = two_rows() | {"mask": torch.tensor([[True, True, True]]), "groups": torch.tensor([0])}
        alone["weights"] = torch.ones(1, dtype=torch.float64)
        got = run(name, scope, two_rows(weights=(1.0, 0.0)))
        assert torch.equal(got[:1], run(name, scope, alone)) and (got[1] == 0).all()

    @pytest.mark.parametrize(("name", "scope"), CASES)
    def test_nothing_left_is_zero_not_nan(self, name: str, scope: str) -> None:
        assert (run(name, scope, two_rows(weights=(0.0, 0.0))) == 0).all()

    @pytest.mark.parametrize(("name", "scope"), CASES)
    def test_nan_in_padded_weights_stays_out(self, name: str, scope: str) -> None:
        clean = two_rows(weights=[[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
        dirty = two_rows(weights=[[1.0, 1.0, 1.0], [1.0, float("nan"), float("nan")]])
        assert torch.equal(run(name, scope, dirty), run(name, scope, clean))


@given(st.integers(0, 10_000), st.sampled_from(CASES[:4]))
def test_means_of_a_constant_are_that_constant(seed: int, case: tuple[str, str]) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    t["weights"] = (t["weights"] > 0).double()
    assert abs(float(run(*case, t).sum()) - float((t["weights"] > 0).any())) < 1e-12
