"""Both corrections of a verifier that errs: of the reward before credit, and of the advantage."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.noisy_verifier import backward, forward, rates

from coterie.credit import group_norm, noisy_verifier_forward
from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.rewards.shaping import noisy_verifier_backward

rate = st.floats(0, 0.45)
both = pytest.mark.parametrize(
    "piece,setting",
    [
        (noisy_verifier_backward, "false_positive_from"),
        (noisy_verifier_backward, "false_negative_from"),
        (noisy_verifier_forward, "false_negative_from"),
    ],
)


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


@pytest.mark.oracle("noisy-verifier-backward", "noisy-verifier-forward")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("named", [True, False])
def test_against_the_oracles(kind: str, named: bool) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        size = len(n["rewards"])
        draw = np.random.default_rng(seed)
        fp, fn = draw.random(size) * 0.6, draw.random(size) * 0.6  # some sums are beyond the floor
        fp[0] = fn[-1] = math.nan
        t = inputs.tensors(n)
        components = {"fp": torch.from_numpy(fp), "fn": torch.from_numpy(fn)}
        accepts = rates(0.15, fp if named else None, size)
        rejects = rates(0.25, fn if named else None, size)
        got = noisy_verifier_backward(
            t["rewards"], components, false_positive=0.15, false_negative=0.25, floor=0.3,
            false_positive_from="fp" if named else None, false_negative_from="fn" if named else None,
        )  # fmt: skip
        near(got, backward(n["rewards"], accepts, rejects, floor=0.3))
        got = noisy_verifier_forward(
            t["rewards"], components, false_negative=0.25, false_negative_from="fn" if named else None
        )
        near(got, forward(n["rewards"], rejects))


@pytest.mark.oracle("noisy-verifier-backward", "noisy-verifier-forward")
def test_numbers_of_the_source() -> None:
    rewards = R(1, 0, 0, 0)
    near(noisy_verifier_backward(rewards, {}), [1.285714, -0.142857, -0.142857, -0.142857], 1e-5)
    near(noisy_verifier_forward(rewards, {}), [0.2, -0.8, -0.8, -0.8])


@both
def test_a_rate_that_nobody_gives_is_an_error(piece: Any, setting: str) -> None:
    with pytest.raises(RewardError, match=f"{piece.__name__} reads the reward component 'fo', which no .*(?s:.*)'foo'"):
        piece(R(1, 0), {"foo": R(0, 0)}, **{setting: "fo"})


def test_what_it_records() -> None:
    with collect(seen := Collector()):
        noisy_verifier_backward(R(1, 0), {"fn": R(0.85, 0.2)}, false_negative_from="fn")
    assert seen.means() == {"noisy_verifier/floored_share": 0.5}


@pytest.mark.reduction("noisy-verifier-backward")
@given(st.lists(st.booleans(), min_size=2, max_size=8), rate, rate)
def test_backward_under_a_group_z_score_changes_nothing(right: list[bool], fp: float, fn: float) -> None:
    """One pair of rates for all is an affine map. Without rates it is the reward."""
    rewards, groups = R(*map(float, right)), torch.zeros(len(right), dtype=torch.long)
    shaped = noisy_verifier_backward(rewards, {}, false_positive=fp, false_negative=fn)
    near(group_norm(shaped, groups, eps=1e-12), group_norm(rewards, groups, eps=1e-12), 1e-9)
    assert torch.equal(noisy_verifier_backward(rewards, {}, false_positive=0.0, false_negative=0.0), rewards)


def expected(clean: list[bool], fp: float, fn: float, correct: Any) -> np.ndarray:
    """Mean of `correct(verdicts)` over every way in which the verifier may judge, with its probability."""
    total = np.zeros(len(clean))
    for verdicts in itertools.product((0.0, 1.0), repeat=len(clean)):
        chance = math.prod(
            (1 - fn if v else fn) if c else (fp if v else 1 - fp) for v, c in zip(verdicts, clean, strict=True)
        )
        total += chance * correct(R(*verdicts)).numpy()
    return total


@pytest.mark.reduction("noisy-verifier-backward", "noisy-verifier-forward")
@given(st.lists(st.booleans(), min_size=1, max_size=5), rate, rate)
def test_the_mean_over_the_verifiers_errors_is_clean(clean: list[bool], fp: float, fn: float) -> None:
    truth = np.array(clean, dtype=float)
    corrected = expected(clean, fp, fn, lambda v: noisy_verifier_backward(v, {}, false_positive=fp, false_negative=fn))
    np.testing.assert_allclose(corrected, truth, atol=1e-12)
    weights = expected(clean, fp, fn, lambda v: noisy_verifier_forward(v, {}, false_negative=fn))
    np.testing.assert_allclose(weights, (1 - fp - fn) * (truth - 1), atol=1e-12)


@pytest.mark.reduction("noisy-verifier-forward")
@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_forward_without_refused_right_answers_learns_from_failures_alone(right: list[bool]) -> None:
    assert noisy_verifier_forward(R(*map(float, right)), {}, false_negative=0.0).tolist() == [r - 1.0 for r in right]
