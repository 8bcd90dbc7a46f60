from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.drpo import drpo as oracle

from coterie.metrics import Collector, collect
from coterie.objectives.aggregations import sequence
from coterie.objectives.losses import discriminative

NAMES = ("logp", "logp_old", "rewards", "lengths", "groups", "weights", "mask")


def made(kind: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    n = inputs.table(kind, seed)
    if seed:
        n["rewards"] = (np.random.default_rng(seed).random(len(n["rewards"])) < 0.5) * 1.0
    return n, inputs.tensors(n)


def small(rows: list[list[float]], rewards: list[float], old: list[list[float]] | None = None) -> dict[str, Any]:
    """One group of rollouts of these log-probs."""
    wide = max(map(len, rows))
    mask = torch.tensor([[t < len(r) for t in range(wide)] for r in rows])
    logp, before = (
        torch.tensor([r + [0.0] * (wide - len(r)) for r in x], dtype=torch.float64) for x in (rows, old or rows)
    )
    return {
        "logp": logp.requires_grad_(), "logp_old": before, "rewards": torch.tensor(rewards, dtype=torch.float64),
        "lengths": mask.sum(-1), "groups": torch.zeros(len(rows), dtype=torch.long),
        "weights": torch.ones(len(rows), dtype=torch.float64), "mask": mask,
    }  # fmt: skip


def update(t: dict[str, Any], budget: int, **settings: Any) -> tuple[float, torch.Tensor]:
    """The loss averaged over groups, and its gradient."""
    settings = {"lam": 0.1} | settings
    value = discriminative(*(t[n] for n in NAMES), budget, **settings)
    total = inputs.scalar(value, sequence(t["weights"], t["mask"], t["groups"], scope="group"))
    return float(total.detach()), torch.autograd.grad(total, t["logp"])[0]


@pytest.mark.oracle("drpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_value_and_gradient_against_the_oracle(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    settings: dict[str, Any] = {"lam": 0.3, "tau": 2.0, "beta": 3.0, "delta": 0.05, "above": 0.2}
    for seed in range(4):
        n, t = made(kind, seed)
        live = n["mask"] & (n["weights"] != 0)[:, None]
        columns = (n["rewards"], n["lengths"], n["groups"], live, inputs.BUDGET)
        values, slopes = oracle(n["logp"], n["logp_old"], *columns, **settings)
        t = {k: v.to(dtype) if k in NAMES and v.is_floating_point() else v for k, v in t.items()}
        t["logp"] = inputs.garbage("logp", t["logp"], t["mask"]).requires_grad_()
        got = discriminative(*(t[name] for name in NAMES), inputs.BUDGET, **settings)
        want = np.array([values[int(g)] for g in n["groups"]])
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=tolerance, atol=tolerance)
        for g, slope in slopes.items():
            first = int(np.nonzero(n["groups"] == g)[0][0])
            (gradient,) = torch.autograd.grad(got[first], t["logp"], retain_graph=True)
            np.testing.assert_allclose(gradient.numpy(), slope, rtol=tolerance, atol=tolerance)


@pytest.mark.oracle("drpo")
def test_numbers_of_the_source() -> None:
    t = small([[-1.0], [-2.0, -2.0], [-3.0]], [1, 1, 0])
    loss, gradient = update(t, 2, lam=0.5, tau=1.0)
    assert loss == pytest.approx(-1.731059, abs=1e-6)
    want = [[-0.731059, 0], [-0.134471, -0.134471], [1, 0]]
    np.testing.assert_allclose(gradient.numpy(), want, atol=1e-6)
    assert loss == pytest.approx(update(t, 99, lam=0.5, tau=1.0, max_length=2)[0])


@pytest.mark.parametrize("reward", [0, 1])
def test_groups_of_one_kind_have_the_constraint_alone(reward: int) -> None:
    rows, old = [[-1.0, -2.0], [-3.0, -1.0]], [[-0.5, -1.0], [-3.0, -1.0]]
    assert update(small(rows, [reward] * 2), 4) == (0.0, pytest.approx(np.zeros((2, 2))))
    loss, gradient = update(small(rows, [reward] * 2, old), 4, beta=2.0, delta=0.075)
    assert loss == pytest.approx(2 * 0.3 * 0.375)
    np.testing.assert_allclose(gradient.numpy(), np.full((2, 2), -2 * 0.3 / 4))
    assert update(small(rows, [reward] * 2, old), 4, delta=0.4)[0] == 0.0


def test_rollouts_without_weight_are_not_there() -> None:
    rows, rewards = [[-1.0], [-2.0], [-3.0], [-0.5]], [1, 1, 0, 0]
    t = small(rows, rewards)
    t["weights"] = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    loss, gradient = update(t, 4)
    alone, kept = update(small([rows[0], rows[2]], [1, 0]), 4)
    assert loss == pytest.approx(alone)
    np.testing.assert_allclose(gradient.numpy(), [kept[0].tolist(), [0], kept[1].tolist(), [0]])


def test_what_it_records() -> None:
    t = small([[-1.0], [-2.0], [-3.0]], [1, 1, 0], [[-1.0], [-1.4], [-3.0]])
    with collect(seen := Collector(), t["mask"]):
        discriminative(*(t[n] for n in NAMES), 4)
    assert seen.means() == {
        "contrast/share": 1.0, "contrast/kl": pytest.approx(0.2), "contrast/constrained_share": 1.0
    }  # fmt: skip


@pytest.mark.reduction("drpo")
@given(st.lists(st.tuples(st.floats(-3, -0.1), st.integers(1, 6), st.booleans()), min_size=2, max_size=6))
def test_without_a_preference_for_length_right_rollouts_weigh_the_same(rows: list[tuple[float, int, bool]]) -> None:
    """lam -> infinity is the discriminative objective: mean score of the right, soft maximum of the wrong."""
    t = small([[x] * n for x, n, _ in rows], [float(r) for *_, r in rows])
    loss, _ = update(t, 6, lam=1e9, tau=1.0)
    right, wrong = ([x for x, _, r in rows if r == kind] for kind in (True, False))
    want = np.log(np.mean(np.exp(wrong))) - np.mean(right) if right and wrong else 0.0
    assert loss == pytest.approx(want, abs=1e-6)


@pytest.mark.reduction("drpo")
@given(st.lists(st.integers(1, 8), min_size=2, max_size=5, unique=True), st.floats(0.05, 1))
def test_no_right_rollout_is_pushed_down_and_shorter_ones_are_preferred(lengths: list[int], lam: float) -> None:
    t = small([[-1.0] * n for n in sorted(lengths)] + [[-1.0]], [1.0] * len(lengths) + [0.0])
    _, gradient = update(t, 8, lam=lam)
    push = -gradient.sum(-1)
    assert (push[:-1] > 0).all() and (push[:-1].diff() < 0).all() and push[-1] < 0
    assert float(push[:-1].sum()) == pytest.approx(1.0)
