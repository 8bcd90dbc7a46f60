"""diffu-GRPO, coupled-GRPO and CJ-GRPO as their recipes compose them, against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.masked_diffusion import loss as oracle

from coterie.objectives.aggregations import forward_pass, token
from coterie.recipe import resolve

METHODS = {"diffu-grpo": (0.04, False, False), "cj-grpo": (0.04, True, False), "coupled-grpo": (0.01, False, True)}


def composed(method: str, t: dict[str, Any], *overrides: str) -> tuple[float, torch.Tensor]:
    """The loss of a method's recipe on a table, and its gradient by logp."""
    recipe = resolve(method=method, values={"task": "sort"}, overrides=overrides)
    t = t | {"weights": torch.ones_like(t["rewards"]), "logp": t["logp"].detach().clone().requires_grad_()}
    t["advantages"] = recipe.single["credit.baseline"](t)
    coefficients = recipe.single["objective.aggregation"](t)
    t["ratio"] = recipe.single["objective.ratio"](t)
    total = inputs.scalar(-recipe.single["objective.trust_region"](t), coefficients)
    for term in recipe.chain["objective.terms"]:
        total = total + inputs.scalar(term(t), coefficients)
    total.backward()
    return float(total.detach()), t["logp"].grad


@pytest.mark.oracle("diffu-grpo", "cj-grpo", "coupled-grpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_against_plain_loops(method: str, kind: str) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        value, gradient = composed(method, inputs.tensors(n))
        want, slope = oracle(n, 0.5, *METHODS[method])
        np.testing.assert_allclose(value, want, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(np.where(n["mask"], gradient.numpy(), 0.0), slope, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("diffu-grpo", "cj-grpo")
@pytest.mark.parametrize(("method", "want"), [("diffu-grpo", -0.20357), ("cj-grpo", -0.09018)])
def test_numeric_example(method: str, want: float) -> None:
    t = {
        "logp": torch.tensor([[-1.0, -0.5], [-1.0, -2.0]], dtype=torch.float64),
        "logp_old": torch.tensor([[-1.2, -0.5], [-1.0, -1.0]], dtype=torch.float64),
        "rewards": torch.tensor([1.0, 0.0], dtype=torch.float64),
        "groups": torch.tensor([0, 0]),
        "mask": torch.tensor([[True, True], [True, method == "cj-grpo"]]),
        "pass_index": torch.tensor([[0, 1], [0, 1]]),
    }
    assert composed(method, t, "objective.terms=[]")[0] == pytest.approx(want, abs=5e-6)


@pytest.mark.reduction("cj-grpo")
@given(seed=st.integers(0, 50))
def test_one_pass_is_the_mean_over_tokens(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    one = torch.zeros_like(t["pass_index"])
    torch.testing.assert_close(forward_pass(t["weights"], t["mask"], one), token(t["weights"], t["mask"], t["groups"]))


@pytest.mark.reduction("diffu-grpo")
@given(seed=st.integers(0, 50))
def test_without_kl_it_is_token_grpo_without_std(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    plain = "credit.baseline.scale=none objective.aggregation=token objective.trust_region.eps_low=0.5"
    grpo = composed("grpo", t, *plain.split(), "objective.trust_region.eps_high=0.5")
    assert composed("diffu-grpo", t, "objective.terms=[]")[0] == pytest.approx(grpo[0], abs=1e-12)


@pytest.mark.reduction("coupled-grpo")
@given(seed=st.integers(0, 50))
def test_the_others_as_baseline_are_the_mean_stretched(seed: int) -> None:
    """In groups of n the leave-one-out advantage is n/(n-1) times that of the mean; without KL so is what they add."""
    t = inputs.tensors(inputs.table("random", seed)) | {"logp_old": torch.zeros(12, 7, dtype=torch.float64)}
    t |= {"logp": torch.zeros(12, 7, dtype=torch.float64), "groups": torch.arange(12) // 4}
    coupled, diffu = (composed(m, t, "objective.terms=[]") for m in ("coupled-grpo", "diffu-grpo"))
    assert coupled[0] == pytest.approx(4 / 3 * diffu[0], abs=1e-12)
    torch.testing.assert_close(coupled[1], 4 / 3 * diffu[1])
